"""What object stores say, as errors of this library: URL, cause, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqla_datastore.exceptions import DataStoreError, MissingObjectError, StorageError

_CODE = re.compile(r"<Code>(\w+)</Code>")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|([Bb]ucket|container) does not exist")
# What stands behind these is the body of an answer, and the parameters of a request. Among them may
# be a signature, or a token.
_PRIVATE = re.compile(r":?\s*<.*|\?\S*", re.DOTALL)
# not the option that is quoted where a request was tried again, whatever came of it
_SILENCE = re.compile(
    "error sending request|(?<!retry_)[Tt]imed? ?out|error decoding response|response body error"
)
_BUSY = re.compile(r"status code: (429|5\d\d)|SlowDown|TooManyRequests")

_ADVICE = (
    (_NO_BUCKET, "the bucket does not exist: make it, or name another one"),
    (
        re.compile(
            r"status code: 40[13]|Unauthenticated|PermissionDenied|169\.254\.169\.254|Signature"
        ),
        (
            "are the credentials right, and may they do this? they are in options.storage_options "
            "or in the environment"
        ),
    ),
    (
        re.compile("builder error"),
        (
            "an http:// endpoint needs client_options={'allow_http': True} in "
            "options.storage_options, or for s3:// AWS_ALLOW_HTTP=true in the environment"
        ),
    ),
    (_BUSY, "the store is busy, or asks for fewer requests: try again later"),
    (_SILENCE, "is the endpoint right, and does it answer? see options.request_seconds"),
)


@contextmanager
def object_errors(url: str, base: str) -> Iterator[None]:
    """Turn what obstore raises into this library's errors.

    The cause is told in the message and not chained: its text quotes whole answers, and what a
    server repeats in one of them may be a secret.

    Args:
        url: the object, or the base.
        base: the storage's URL.
    """
    try:
        yield
    except (DataStoreError, MemoryError):
        raise
    except Exception as err:
        raise translated(err, url, base) from None


def translated(err: Exception, url: str, base: str) -> DataStoreError:
    """Return the error of this library for one of obstore."""
    text = f"{type(err).__name__} {err}"
    if isinstance(err, FileNotFoundError) and not _NO_BUCKET.search(text):
        return MissingObjectError(url, f"the storage {base!r}")
    code = _CODE.search(text)
    reason = _reason(err)
    shown = reason + (f" ({code[1]})" if code else "")
    advice = next((advice for found, advice in _ADVICE if found.search(text)), "")
    what = repr(url) if url == base else f"{url!r} in {base!r}"
    return StorageError(
        f"{what}: {shown}; {advice or 'see docs/object-stores.md'}",
        url=url,
        no_answer=is_silence(err),
    )


def is_silence(err: Exception) -> bool:
    """Return whether an error of obstore says that a store was asked as long as it may take."""
    reason = _reason(err)
    return any(found.search(reason) for found in (_SILENCE, _BUSY))


def _reason(err: Exception) -> str:
    """Return what an error says, without what may be a secret."""
    return _PRIVATE.sub("", str(err).partition("\n")[0])
