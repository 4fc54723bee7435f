"""Forms of secrets: keys of known services by their own letters, others by the words that stand before them.

The forms are those that the services document, or that their scanners of repositories look for.
"""

import re
from dataclasses import dataclass

MASK = "<masked>"
# Names of what holds a secret, as programs write them.
NAME = (
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|credentials?|dsn|authorization"
    r"|(?:api|access|secret|private|account|encryption|signing|master|deploy|shared[_-]?access|auth)[_-]?key)"
)
# `pad_token` and its like are no secrets.
_OF_A_TOKENIZER = "".join(
    f"(?<!{word}_)"
    for word in (
        *("pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "video", "audio"),
        *("special", "stop", "end", "per", "next", "first", "last", "think"),
    )
)
# What may stand where a secret would: nothing, a reference, a placeholder.
_NO_REFERENCE = r"(?!env:|null\b|none\b|true\b|false\b|[<$*{(\[]|\.\.\.)"
_HAS_DIGIT = r"(?=[^\s]{0,60}\d)"
_HAS_LETTER = r"(?=[^\s]{0,60}[A-Za-z])"
_QUOTE = r"\\?['\"]?"
_ADDRESS = r"\b[A-Za-z][A-Za-z0-9+.-]*://"
_HOOKS = (
    r"hooks\.slack\.com/(?:services|workflows|triggers)"
    r"|discord(?:app)?\.com/api/webhooks"
    r"|[\w.-]+\.webhook\.office\.com/webhookb2"
)
_PARAMETERS = (
    r"[\w-]*token|(?:[\w-]*api[_-]?)?key|sig|signature|auth|(?:ssl)?password|pwd|[\w-]*secret"
    r"|x-amz-(?:signature|credential)|x-goog-signature"
)


@dataclass(frozen=True)
class Kind:
    """A form of secrets; the group `kept` of its pattern stays."""

    name: str
    pattern: re.Pattern[str]


def _certain(name: str, *patterns: str) -> Kind:
    return Kind(name, re.compile("".join(patterns), re.DOTALL))


def _likely(name: str, *patterns: str) -> Kind:
    return Kind(name, re.compile("".join(patterns), re.IGNORECASE))


def _token(name: str, *patterns: str) -> Kind:
    """Keys that begin with their service's own letters, and are no part of a longer word."""
    return _certain(name, rf"(?<![A-Za-z0-9_-])(?:{'|'.join(patterns)})(?![A-Za-z0-9_-])")


_SERVICES = (
    _token("a Hugging Face token", r"(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    _token("an Anthropic key", r"sk-ant-[A-Za-z0-9_-]{20,}"),
    _token("an OpenAI key", rf"sk-{_HAS_DIGIT}[A-Za-z0-9_-]{{20,}}"),
    _token("a GitHub token", r"gh[opsur]_[A-Za-z0-9]{30,}", r"github_pat_[A-Za-z0-9_]{40,}"),
    _token("a GitLab token", r"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat)-[A-Za-z0-9_.-]{20,}"),
    _token("a Slack token", r"xox[abceoprs]-[A-Za-z0-9-]{10,}", r"xapp-\d-[A-Za-z0-9-]{10,}"),
    _token("a Google key", r"AIza[A-Za-z0-9_-]{35}", r"ya29\.[A-Za-z0-9_-]{20,}", r"GOCSPX-[A-Za-z0-9_-]{28}"),
    _token("a signed token (JWT)", r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{6,}"),
    _token("a Stripe key", r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}", r"whsec_[A-Za-z0-9+/]{20,}=*"),
    _token("a SendGrid key", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    _token("an npm token", r"npm_[A-Za-z0-9]{36}"),
    _token("a PyPI token", r"pypi-[A-Za-z0-9_-]{40,}"),
    _token("a Databricks token", r"dapi[0-9a-f]{32}(?:-\d)?"),
    _token("a Groq key", r"gsk_[A-Za-z0-9]{40,}"),
    _token("a Perplexity key", r"pplx-[A-Za-z0-9]{40,}"),
    _token("a Replicate token", r"r8_[A-Za-z0-9]{36,}"),
    _token("an NVIDIA key", r"nvapi-[A-Za-z0-9_-]{40,}"),
    _token("a Weights & Biases key", r"wandb_v\d_[A-Za-z0-9_]{30,}"),
    _token("a Vault token", r"hv[sbr]\.[A-Za-z0-9_-]{20,}"),
    _token("a Docker token", r"dckr_pat_[A-Za-z0-9_-]{20,}"),
    _token("a Grafana token", r"glsa_\w{30,}"),
    _token("a DigitalOcean token", r"do[opr]_v1_[0-9a-f]{64}"),
    _token("a Shopify token", r"shp(?:at|ca|pa|ss)_[0-9a-f]{32}"),
    _token("a Telegram bot's token", r"\d{8,10}:AA[A-Za-z0-9_-]{33}"),
    _token("an age key", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
)
_SHAPES = (
    _certain("a private key", r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)"),
    _certain(
        "an AWS key",
        r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])",
        r"(?:[\s:/,;]+[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=]))?",  # with the secret one behind it
    ),
    _certain("an Azure key", r"(?P<kept>\b(?:AccountKey|SharedAccessKey)=)[A-Za-z0-9+/]{40,}={0,2}"),
    _certain("an Azure secret", r"(?<![\w~.-])[\w~.-]{3}[78]Q~[\w~.-]{31,}"),
    _certain("a webhook's address", rf"(?P<kept>https://(?:{_HOOKS})/)(?!<masked>)[^\s\"'<>]+"),
    _certain("a password", rf"(?P<kept>{_ADDRESS}[^\s/?#@:\"'<>]*:)(?!<masked>@)[^\s/?#\"'<>]+(?=@)"),
    _certain("a key", rf"(?P<kept>{_ADDRESS})(?!<masked>@)[^\s/?#@:\"'<>]{{20,}}(?=@)"),
)
_NAMED = (
    _likely("a key", rf"(?P<kept>[?&;](?:{_PARAMETERS})=)(?!<masked>|env:)[^&\s\"'#<>;]{{4,}}"),
    _likely(
        "an authorization",
        rf"(?P<kept>\bauthorization{_QUOTE}\s*[:=]\s*{_QUOTE}",
        r"(?:(?:bearer|basic|token|digest|apikey|aws4-hmac-sha256)\s+)?)",
        r"(?!<masked>|(?:bearer|basic|token|digest|apikey)\b|env:|null|none|[<$*])[^\s'\",}]{6,}",
    ),
    _likely("an authorization", rf"(?P<kept>\bbearer\s+){_HAS_DIGIT}[A-Za-z0-9._~+/-]{{16,}}=*"),
    Kind(
        "an authorization",
        re.compile(
            r"(?P<kept>\b[Bb]asic\s+)(?=[^\s]{0,60}[A-Z0-9=])[A-Za-z0-9+/]{12,}={0,2}(?![A-Za-z0-9+/=])",
        ),
    ),
    _likely(
        "a Weights & Biases key",
        r"(?P<kept>\bwandb(?:\.ai)?\W{1,4}(?:(?:login|key|token|api[ _-]key|user)\W{1,6}){0,3})[0-9a-f]{40}\b",
    ),
    _likely("a password", r"(?P<kept>\blogin\s+\S+\s+password\s+)(?!<masked>)\S+"),  # .netrc
    # `name=value` needs less proof than `name: value`, which is how people write too.
    _likely(
        "a password",
        rf"(?P<kept>\b(?:\w*[_-])?(?:pass(?:word|wd|phrase|code)|pwd){_QUOTE}\s*=\s*{_QUOTE})",
        rf"{_NO_REFERENCE}[^\s'\",;&}}\])]{{4,}}",
    ),
    _likely(
        "a secret",
        rf"(?P<kept>\b(?:\w*[_-])?{_OF_A_TOKENIZER}{NAME}{_QUOTE}\s*(?:=>|=|:)\s*{_QUOTE})",
        rf"{_NO_REFERENCE}{_HAS_DIGIT}{_HAS_LETTER}[^\s'\",;&}}\])]{{6,}}",
    ),
)
KINDS = (*_SHAPES[:1], *_SERVICES, *_SHAPES[1:], *_NAMED)
