"""Users and what they may write. `python server/allow.py NAME [experiment:NAME | registered_model:NAME ...]`

Makes the user, whose password is asked for or taken from NEW_PASSWORD, where there is none of that name; makes what is
named, so that nobody else can take the name; and lets the user edit it. MLFLOW_TRACKING_URI is the server's address,
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are its admin's.
"""

import contextlib
import getpass
import os
import sys
from collections.abc import Iterator

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

THERE = "RESOURCE_ALREADY_EXISTS"
KINDS = ("experiment", "registered_model")


@contextlib.contextmanager
def unless_there() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != THERE:
            raise


def main(user: str, resources: list[str]) -> None:
    address = os.environ["MLFLOW_TRACKING_URI"]
    users, client = get_app_client("basic-auth", address), MlflowClient(address)
    with unless_there():
        password = os.environ.get("NEW_PASSWORD") or getpass.getpass(f"password of {user}, 12 characters or more: ")
        users.create_user(user, password)
        print(f"user {user} is made")
    for resource in resources:
        kind, _, name = resource.partition(":")
        if kind == "experiment":
            found = client.get_experiment_by_name(name)
            key = found.experiment_id if found else client.create_experiment(name)
        else:
            key = name
            with unless_there():
                client.create_registered_model(name)
        with unless_there():
            users.grant_user_permission(user, kind, key, "EDIT")
        print(f"{user} may edit {kind} {name}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or any(word.partition(":")[0] not in KINDS for word in sys.argv[2:]):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
