"""The ledger's schema, revision by revision; `registry.ledger.database` applies them when a ledger opens."""
