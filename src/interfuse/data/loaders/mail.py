"""Mail: the head as fields, the body as text, attachments as documents of their own; mailboxes as many mails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from hashlib import sha256

from interfuse.core.errors import InterfuseError
from interfuse.data.corpus import Document
from interfuse.data.loaders.html import write_html
from interfuse.data.loaders.layout import Limits, Writer, clean
from interfuse.data.loaders.text import decode

FIELDS = ("From", "To", "Cc", "Date", "Subject", "Message-ID", "In-Reply-To", "Reply-To")


def read_mail(data: bytes, name: str, limits: Limits) -> tuple[Document, list[tuple[str, bytes]]]:
    """A mail as a document, and its attachments: (name, bytes)."""
    message = message_from_bytes(data, policy=policy.default)
    writer = Writer(limits)
    for key in FIELDS:
        try:
            value = clean(str(message.get(key, "") or ""))
        except (ValueError, TypeError, AttributeError, IndexError):  # a head the parser chokes on
            value = ""
        if value:
            writer.meta[key.casefold()] = value
            if key in ("From", "To", "Cc", "Date", "Subject"):
                writer.add("heading" if key == "Subject" else "field", value if key == "Subject" else f"{key}: {value}",
                           separator="\n", place=key, level=int(key == "Subject"))  # fmt: skip
    body, attached = _parts(message)
    if body is not None:
        words = _words(body)
        if body.get_content_type() == "text/html":
            write_html(writer, words)
        else:
            _plain(writer, clean(words, lines=True))
    if attached:
        writer.meta["attachments"] = ", ".join(n for n, _ in attached)
    return writer.document(data, name, "mail"), attached


def _parts(message: EmailMessage) -> tuple[EmailMessage | None, list[tuple[str, bytes]]]:
    """The body that is preferred (plain text), and the attachments."""
    plain: EmailMessage | None = None
    page: EmailMessage | None = None
    attached: list[tuple[str, bytes]] = []
    stack: list[EmailMessage] = [message]
    seen = 0
    while stack:
        part = stack.pop(0)
        seen += 1
        if seen > 1000:
            raise InterfuseError("input.limit", "a mail has more than 1,000 parts")
        kind = part.get_content_type()
        label = clean(part.get_filename() or "")
        if kind == "message/rfc822" and part is not message:
            inner = part.get_payload()
            held = inner[0] if isinstance(inner, list) and inner else None
            if isinstance(held, EmailMessage):
                attached.append((label or f"message-{len(attached) + 1}.eml", held.as_bytes()))
        elif part.is_multipart():
            stack = [p for p in part.iter_parts() if isinstance(p, EmailMessage)] + stack
        elif label or part.get_content_disposition() == "attachment":
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes) and payload:
                attached.append((label or f"part-{len(attached) + 1}", payload))
        elif kind == "text/plain" and plain is None:
            plain = part
        elif kind == "text/html" and page is None:
            page = part
    names: dict[str, int] = {}
    unique = []
    for label, payload in attached:
        names[label] = names.get(label, 0) + 1
        unique.append((label if names[label] == 1 else f"{names[label]}-{label}", payload))
    return plain or page, unique


def _words(part: EmailMessage) -> str:
    payload = part.get_payload(decode=True)
    return decode(payload, part.get_content_charset() or "")[0] if isinstance(payload, bytes) else ""


def _plain(writer: Writer, words: str) -> None:
    """Paragraphs of a plain body; quoted lines are quotes, and a signature is a note."""
    body, mark, signature = words.partition("\n-- \n")
    for block in re.split(r"\n[ \t]*\n\s*", body):
        lines = block.strip("\n").split("\n")
        quoted = [line.lstrip().startswith(">") for line in lines]
        begin = 0
        for i in range(1, len(lines) + 1):
            if i == len(lines) or quoted[i] != quoted[begin]:
                text = "\n".join(x.lstrip("> \t") if quoted[begin] else x.rstrip() for x in lines[begin:i]).strip()
                writer.add("quote" if quoted[begin] else "paragraph", text, raw=True)
                begin = i
    if mark and signature.strip():
        writer.add("note", signature.strip(), raw=True, place="signature")


def split_mailbox(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The mails of a mailbox (mbox), named by their number and hash."""
    starts = [m.start() for m in re.finditer(rb"(?:\A|(?<=\n))From [^\n]*\n", data)]
    for number, (left, right) in enumerate(zip(starts, [*starts[1:], len(data)], strict=True), 1):
        body = data[left:right].partition(b"\n")[2].replace(b"\n>From ", b"\nFrom ")
        if body.strip():
            yield f"{number}-{sha256(body).hexdigest()[:8]}.eml", body
