#!/bin/sh
# MLflow's tracking server and registry as a team runs it: users and permissions, PostgreSQL, artifacts behind the server.
# Everything it needs is in the environment (server/.env.example says what); no secret stands on a command line, where
# every user of the machine could read it, nor in a file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

for name in PGHOST PGUSER PGPASSWORD PGDATABASE MLFLOW_FLASK_SERVER_SECRET_KEY ALLOWED_HOSTS ARTIFACTS; do
    eval "value=\${$name:-}"
    [ -n "$value" ] || { echo "server/start.sh: $name isn't set" >&2; exit 2; }
done

# The password is PGPASSWORD: libpq takes it from there, so no address holds it.
database="postgresql://$PGUSER@$PGHOST:${PGPORT:-5432}/$PGDATABASE"
settings=$(mktemp)
sed "s|^database_uri = .*|database_uri = $database|" "$here/basic_auth.ini" > "$settings"

export MLFLOW_AUTH_CONFIG_PATH="$settings"
export MLFLOW_BACKEND_STORE_URI="$database"
export MLFLOW_ARTIFACTS_DESTINATION="$ARTIFACTS"
export MLFLOW_SERVER_ALLOWED_HOSTS="$ALLOWED_HOSTS"
export MLFLOW_SERVER_CORS_ALLOWED_ORIGINS="${ALLOWED_ORIGINS:-}"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # nobody's code runs in the server
export MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false

exec "${PYTHON:-python}" -m mlflow server --app-name basic-auth --host "${HOST:-0.0.0.0}" --port "${PORT:-5000}" --workers "${WORKERS:-2}"
