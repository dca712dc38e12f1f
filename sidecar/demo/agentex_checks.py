"""How Agentex and its database validate a body, and the shapes of their errors.

Checks run in the real server's order: content type, JSON, request model, PostgreSQL.
"""

import json
from email.message import Message
from typing import Any

from sidecar.demo.bodies import NoUtcError, parse_time, survey
from sidecar.demo.stand_in import Answer, Recorded, Refusal

TEXTS = ("id", "trace_id", "task_id", "parent_id", "name")
TIMES = ("start_time", "end_time")
JSONS = ("input", "output", "data")
_INDEXED = ("id", "trace_id", "task_id", "parent_id")
_INDEX_MAX = 2704
_PARSER_DEPTH = 900

Row = dict[str, Any]


def validated(request: Recorded, required: tuple[str, ...]) -> Row:
    """Return the body's fields as the request model accepts them, without unknown ones.

    Raises Refusal with the real server's 400 or 422.
    """
    sent = _parsed(request)
    if not isinstance(sent, dict):
        raise Refusal(invalid([{"type": "model_attributes_type", "loc": ("body",), "input": sent}]))
    errors: list[Row] = []
    for name in required:
        if name not in sent:
            errors.append({"type": "missing", "loc": ("body", name), "input": sent})
        elif sent[name] is None:
            errors.append({"type": "none_not_allowed", "loc": ("body", name), "input": None})
    values = {k: v for k, v in sent.items() if k in (*TEXTS, *TIMES, *JSONS)}
    errors += [
        {"type": "value_type", "loc": ("body", name), "input": value}
        for name, value in values.items()
        if value is not None and not _fits(name, value)
    ]
    if errors:
        raise Refusal(invalid(errors))
    return values


def _parsed(request: Recorded) -> Any:  # noqa: ANN401 (JSON)
    content_type = Message()
    content_type["content-type"] = request.headers.get("Content-Type", "text/plain")
    if content_type.get_content_type() != "application/json":
        raise Refusal(invalid([{"type": "dict_type", "loc": ("body",), "input": request.body}]))
    try:
        # Like the real server, this accepts NaN, a BOM, UTF-16 and CESU bytes.
        value = json.loads(request.body)
        if isinstance(value, str):
            value = json.loads(value)  # a "before" validator decodes strings
    except json.JSONDecodeError as error:
        raise Refusal(invalid([{"type": "json_invalid", "loc": ("body", error.pos)}])) from None
    except (ValueError, RecursionError):  # encoding (gzip too), 4,300 digits, depth
        raise Refusal(detail(400, "There was an error parsing the body")) from None
    if survey(value).depth > _PARSER_DEPTH:
        raise Refusal(detail(400, "There was an error parsing the body"))
    return value


def _fits(name: str, value: object) -> bool:
    if name in TEXTS:
        return isinstance(value, str)
    if name in JSONS:
        return isinstance(value, dict) or (
            isinstance(value, list) and all(isinstance(item, dict) for item in value)
        )
    try:
        parse_time(value)
    except NoUtcError:
        return True  # the request model accepts it; the database's driver does not
    except ValueError:
        return False
    return True


def check_storable(values: Row) -> None:
    """Raise Refusal for values that only PostgreSQL or its driver rejects: 500s, nothing stored."""
    for name in TEXTS:
        text = values.get(name)
        if text is None:
            continue
        try:
            size = len(text.encode()) + 16
        except UnicodeEncodeError as error:
            raise Refusal(unhandled(f"DataError: invalid input: {error}")) from None
        if "\0" in text:
            reason = 'invalid byte sequence for encoding "UTF8": 0x00'
            raise Refusal(unhandled(f"CharacterNotInRepertoireError: {reason}"))
        if name in _INDEXED and size > _INDEX_MAX:
            reason = f"index row size {size} exceeds btree version 4 maximum {_INDEX_MAX}"
            raise Refusal(unhandled(f"ProgramLimitExceededError: {reason}"))
    for name in TIMES:
        if values.get(name) is not None:
            try:
                parse_time(values[name])
            except NoUtcError as error:
                raise Refusal(unhandled(f"DataError: invalid input: {error}")) from None
    if not all(survey(values.get(name)).finite for name in JSONS):
        raise Refusal(unhandled('invalid input syntax for type json / Token "NaN" is invalid'))


def dump(value: object) -> bytes:
    """Encode as compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def message(status: int, text: str, *, closes: bool = False) -> Answer:
    """Return an error in the shape that domain errors and unexpected errors share."""
    body = dump({"message": text, "code": status, "data": None})
    return Answer(status, body, closes=closes)


def unhandled(text: str) -> Answer:
    """Return the 500 of an unhandled exception, after which the server closes the connection."""
    return message(500, text, closes=True)


def unknown(span_id: str) -> Answer:
    """Return the 404 for a missing row."""
    return message(404, f"Item with id '{span_id}' does not exist.")


def detail(status: int, text: str) -> Answer:
    """Return an error in FastAPI's own shape."""
    return Answer(status, dump({"detail": text}))


def invalid(errors: list[Row]) -> Answer:
    """Return the 422, which repeats the input and so must never be logged."""
    plural = "s" if len(errors) > 1 else ""
    try:
        shown = repr(errors)
    except RecursionError:
        shown = "..."
    text = f"{len(errors)} validation error{plural}: {shown} File .../routes/spans.py"
    return Answer(422, dump({"status_code": 10422, "message": text, "data": None}))
