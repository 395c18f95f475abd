#!/bin/sh
# Run once by the image of PostgreSQL, on an empty data folder: a role and a database of its own for Prefect, MLflow and
# the ledger. In one database, their migrations would take each other's for their own. psql reads the passwords itself:
# every user of the machine sees the arguments of a command.
set -eu
for name in prefect mlflow ledger; do
  export name
  [ -s "/run/secrets/database_$name" ]
  psql --username "$POSTGRES_USER" --dbname postgres --quiet --set ON_ERROR_STOP=1 --set name="$name" <<'SQL'
\set password `cat "/run/secrets/database_$name"`
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
\connect :"name"
CREATE EXTENSION IF NOT EXISTS pg_trgm;
SQL
done
