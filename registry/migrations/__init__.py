"""The ledger's schema, revision by revision; `registry.database` applies them when a ledger opens."""
