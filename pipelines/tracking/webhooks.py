"""Webhooks of an MLflow server on alias events: who wants to be told when an alias moves, such as CI/CD.

`python -m pipelines.tracking.webhooks NAME URL` registers one at the server that MLFLOW_TRACKING_URI names, with the
secret in WEBHOOK_SECRET; `--list` shows those there, `--test NAME` has the server send a made-up event,
`--delete NAME` takes one away. `examples/webhook_receiver.py` is the other end.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from mlflow.entities.webhook import Webhook
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.errors import UserError

EVENTS = ("model_version_alias.created", "model_version_alias.deleted")  # MLflow tells of a move as of a creation
SECRET = "WEBHOOK_SECRET"
SHORTEST = 16
THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def register(name: str, url: str, secret: str, client: MlflowClient | None = None) -> Webhook:
    """A webhook on alias events, in the place of one of that name. Raises UserError where it can't be trusted.

    The server sends with a signature by `secret`; without one a receiver couldn't know who calls.
    """
    if len(secret) < SHORTEST:
        raise UserError(f"{SECRET}: expected at least {SHORTEST} characters, got {len(secret)}")
    there = urlsplit(url)
    if there.scheme != "https" and not (there.scheme == "http" and there.hostname in THIS_MACHINE):
        raise UserError(f"url: expected https (http only on this machine), got {url}")
    client = client or MlflowClient()
    try:
        for known in named(name, client):
            client.delete_webhook(known.webhook_id)
        return client.create_webhook(name, url, list(EVENTS), secret=secret)
    except MlflowException as error:
        raise UserError(f"webhook {name}: {error.message}") from None


def named(name: str, client: MlflowClient) -> list[Webhook]:
    """Those of that name; MLflow lets several have one."""
    return [one for one in _all(client) if one.name == name]


def _all(client: MlflowClient) -> list[Webhook]:
    found: list[Webhook] = []
    token = None
    while True:
        page = client.list_webhooks(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.tracking.webhooks", description=__doc__)
    parser.add_argument("name", nargs="?")
    parser.add_argument("url", nargs="?")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--test", metavar="NAME")
    parser.add_argument("--delete", metavar="NAME")
    given = parser.parse_args(arguments)
    client = MlflowClient()
    if given.list:
        for one in _all(client):
            print(f"{one.name}: {one.url} on {', '.join(str(event) for event in one.events)} ({one.status})")
    elif given.test or given.delete:
        for one in named(given.test or given.delete, client):
            told = client.test_webhook(one.webhook_id) if given.test else client.delete_webhook(one.webhook_id)
            print(f"{one.name}: {told or 'deleted'}")
    elif given.name and given.url:
        made = register(given.name, given.url, os.environ.get(SECRET, ""), client)
        print(f"{made.name}: {made.url} will be told when an alias moves")
    else:
        parser.error("expected NAME and URL, or --list, --test NAME or --delete NAME")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"tunesmith: {error}")
