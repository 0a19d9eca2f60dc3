"""URLs of databases, which may carry a password."""

import re
from urllib.parse import unquote, unquote_plus


def masked(text: str, url: str) -> str:
    """A text in which the password of a database URL, as it is or decoded, is three stars."""
    name = url.partition("://")[2].rpartition("@")[0]
    secrets = [name.partition(":")[2], *re.findall(r"[?&](?:password|passwd)=([^&]*)", url)]
    for secret in filter(None, secrets):
        for form in (secret, unquote(secret), unquote_plus(secret)):
            text = text.replace(form, "***")
    return text
