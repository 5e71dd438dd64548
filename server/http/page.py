"""The calls over HTTP as a page for people: it asks for nothing from elsewhere and runs nothing."""

from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#223}
h2{margin-top:2.5rem;border-top:1px solid #ccd;padding-top:1rem}h3 small{color:#667;font-weight:400}
code{font:13px ui-monospace,monospace}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #eef}
.verb{display:inline-block;min-width:3.5rem;font-weight:700;color:#257}
@media(prefers-color-scheme:dark){body{background:#12141a;color:#dde}td,th,h2{border-color:#334}.verb{color:#8bf}}
"""


def render_page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    info = document["info"]
    return "".join(
        [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>",
            "<meta name=viewport content='width=device-width'>",
            f"<style>{_STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            f"<p>{escape(info['description'])} The same for machines: <a href=openapi.json>openapi.json</a>.",
            "<p>Every refusal is <code>{code, reason, message, requestId}</code>. Where the server has keys, send ",
            "<code>authorization: Bearer KEY</code>.",
            *_operations(document),
            "<h2>Messages</h2>",
            *_messages(document),
            "</html>",
        ]
    )


def _operations(document: dict[str, Any]) -> Iterator[str]:
    tag = ""
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            if operation["tags"][0] != tag:
                tag = operation["tags"][0]
                yield f"<h2>{escape(tag)}</h2>"
            yield f"<h3><span class=verb>{verb.upper()}</span> <code>{escape(path)}</code> "
            yield f"<small>{escape(operation['operationId'])}</small></h3><p>{escape(operation['description'])}"
            yield from _table(
                (f"{given['name']} <small>in the {given['in']}</small>", given["schema"], given.get("description", ""))
                for given in operation["parameters"]
                if given["in"] != "header"
            )
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                yield f"<p>Body: <code>{escape(kind)}</code>, {_type(content['schema'])}"
            for kind, content in operation["responses"]["200"]["content"].items():
                yield f"<p>Answer: <code>{escape(kind)}</code>, {_type(content['schema'])}"


def _messages(document: dict[str, Any]) -> Iterator[str]:
    for name, made in document["components"]["schemas"].items():
        yield f"<h3 id={escape(name)}>{escape(name)}</h3><p>{escape(made.get('description', ''))}"
        yield from _table(
            (escape(field), of, of.get("description", "")) for field, of in made.get("properties", {}).items()
        )


def _table(rows: Iterator[tuple[str, dict[str, Any], str]]) -> Iterator[str]:
    found = [f"<tr><td><code>{name}</code><td>{_type(of)}<td>{escape(said)}" for name, of, said in rows]
    if found:
        yield f"<table>{''.join(found)}</table>"


def _type(of: dict[str, Any]) -> str:
    if "$ref" in of:
        name = escape(of["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if of["type"] == "array":
        return f"{_type(of['items'])}, several"
    if "additionalProperties" in of and isinstance(of["additionalProperties"], dict):
        return f"by name: {_type(of['additionalProperties'])}"
    return escape(of.get("contentEncoding") or of.get("format") or of["type"])
