"""Secrets of many kinds, made at random in the forms of their services; none of them opens anything."""

import base64
import json
import random
import string

HEX = "0123456789abcdef"
WORD = string.ascii_letters + string.digits
UPPER = string.ascii_uppercase + string.digits


def planted(chance: random.Random) -> dict[str, str]:
    """Kind -> a secret of it."""

    def text(signs: str, length: int) -> str:
        # A digit and a letter are in every real one of such length.
        return "".join(chance.choice(signs) for _ in range(length - 2)) + signs[-1] + signs[0]

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    pem = "\n".join(text(WORD, 64) for _ in range(4))
    return {
        "hugging_face": f"hf_{text(WORD, 34)}",
        "openai": f"sk-proj-{text(WORD, 48)}",
        "anthropic": f"sk-ant-api03-{text(WORD, 60)}",
        "github": f"ghp_{text(WORD, 36)}",
        "github_fine": f"github_pat_{text(WORD, 22)}_{text(WORD, 59)}",
        "gitlab": f"glpat-{text(WORD, 20)}",
        "slack": f"xoxb-{text(string.digits, 12)}-{text(string.digits, 12)}-{text(WORD, 24)}",
        "slack_webhook": f"https://hooks.slack.com/services/T{text(UPPER, 8)}/B{text(UPPER, 8)}/{text(WORD, 24)}",
        "aws": f"AKIA{text(UPPER, 16)}",
        "google": f"AIza{text(WORD, 35)}",
        "azure_storage": f"AccountKey={text(WORD, 86)}==",
        "jwt": f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': text(WORD, 12)})}.{text(WORD, 43)}",
        "private_key": f"-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----",
        "stripe": f"sk_live_{text(WORD, 24)}",
        "sendgrid": f"SG.{text(WORD, 22)}.{text(WORD, 43)}",
        "npm": f"npm_{text(WORD, 36)}",
        "pypi": f"pypi-{text(WORD, 60)}",
        "databricks": f"dapi{text(HEX, 32)}",
        "database_url": f"postgresql://me:{text(WORD, 16)}@db.example.com/rows",
        "basic_auth_url": f"https://me:{text(WORD, 16)}@api.example.com/v1",
        "bearer": f"Authorization: Bearer {text(WORD, 32)}",
        "basic": f"Authorization: Basic {text(WORD, 24)}==",
        "wandb": f"wandb login {text(HEX, 40)}",
        "assignment": f"password={text(WORD, 14)}",
        "query": f"https://api.example.com/v1/rows?token={text(WORD, 20)}",
        "signed_url": f"https://blob.example.com/rows.csv?sv=2026&sig={text(WORD, 43)}%3D",
        # Known only by the variable that holds them.
        "variable": text(WORD, 18),
        "variable_password": text(WORD, 9),
        "variable_named": text(WORD, 22),
    }


# What stands in a text and is known by its form.
PATTERNED = [kind for kind in planted(random.Random(0)) if not kind.startswith("variable")]


def core(secret: str) -> list[str]:
    """The parts of a planted text that are secret: none of them may be anywhere."""
    if "PRIVATE KEY" in secret:
        return secret.splitlines()[1:-1]
    for before, after in (("//me:", "@"), ("token=", ""), ("sig=", "%"), ("password=", ""), ("AccountKey=", "=")):
        if before in secret:
            rest = secret.partition(before)[2]
            return [rest.partition(after)[0] if after else rest]
    return [secret.split()[-1].removeprefix("https://hooks.slack.com/services/").rstrip("=")]
