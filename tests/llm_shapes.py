"""Reads what a model said, writes it as three model APIs do: whole, or as the events of a stream.

OpenAI's Responses (`responses`) and Chat Completions (`chat`), Anthropic's Messages (`messages`).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

APIS = ("responses", "chat", "messages")
PIECES = 4
"""In so many a text comes in a stream."""
Event = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """A reply of the model."""

    text: str
    stop: str = "finished"
    """finished, truncated or refused."""
    usage: tuple[int, int, int] | None = (100, 40, 7)
    """Input tokens in all, cached among them, output; None: the reply tells none."""


def whole(api: str, said: Said) -> dict[str, Any]:
    """The body of a reply that is not streamed."""
    return _WHOLE[api](said)


def events(api: str, said: Said) -> list[Event]:
    """The events of one that is; the last ones say that it is whole."""
    return list(_EVENTS[api](said))


def error_event(api: str, error: dict[str, Any]) -> Event:
    """What says in the middle of a stream that there will be no more."""
    match api:
        case "responses":
            said = {"code": error.get("type"), "message": error.get("message")}
            return {"type": "error", "param": None, "sequence_number": 9, **said}
        case "chat":
            return {"error": error}
        case _:
            return {"type": "error", "error": error}


def failed_event(error: dict[str, Any]) -> Event:
    """The other way in which a response ends."""
    failed = {"code": error.get("type"), "message": error.get("message")}
    return {
        "type": "response.failed",
        "response": {**_response(Said("")), "status": "failed", "error": failed},
    }


def encoded(api: str, event: Event) -> bytes:
    """An event on the wire: OpenAI's chat names none."""
    name = "" if api == "chat" else f"event: {event['type']}\n"
    return f"{name}data: {json.dumps(event)}\n\n".encode()


def _pieces(text: str) -> Iterator[str]:
    each = len(text) // PIECES + 1
    return (text[start : start + each] for start in range(0, len(text), each))


def _response(said: Said) -> dict[str, Any]:
    refused = said.stop == "refused"
    part = (
        {"type": "refusal", "refusal": said.text}
        if refused
        else {"type": "output_text", "text": said.text, "annotations": []}
    )
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    reply: dict[str, Any] = {
        "id": "r",
        "object": "response",
        "created_at": 0,
        "model": "test",
        "status": "incomplete" if said.stop == "truncated" else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if said.stop == "truncated" else None,
        "output": [message],
    }
    if said.usage:
        into, cached, out = said.usage
        reply["usage"] = {
            "input_tokens": into,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": into + out,
        }
    return reply


def _response_events(said: Said) -> Iterator[Event]:
    reply = _response(said)
    begun = {**reply, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    at = {"item_id": "m", "output_index": 0, "content_index": 0}
    kind = "refusal" if said.stop == "refused" else "output_text"
    yield {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": {"type": "message", "content": []},
    }
    for number, piece in enumerate(_pieces(said.text)):
        yield {"type": f"response.{kind}.delta", "delta": piece, "sequence_number": number, **at}
    yield {"type": "response.output_item.done", "output_index": 0, "item": reply["output"][0]}
    last = "incomplete" if said.stop == "truncated" else "completed"
    yield {"type": f"response.{last}", "response": reply}


def _completion(said: Said) -> dict[str, Any]:
    refused = said.stop == "refused"
    message = {
        "role": "assistant",
        "content": None if refused else said.text,
        "refusal": said.text if refused else None,
    }
    reply: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "test",
        "choices": [{"index": 0, "message": message, "finish_reason": _FINISH.get(said.stop, "stop")}],
    }
    if said.usage:
        reply["usage"] = _completion_usage(*said.usage)
    return reply


_FINISH = {"truncated": "length"}


def _completion_usage(into: int, cached: int, out: int) -> dict[str, Any]:
    return {
        "prompt_tokens": into,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens": out,
        "total_tokens": into + out,
    }


def _completion_events(said: Said) -> Iterator[Event]:
    kind = "refusal" if said.stop == "refused" else "content"

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "t", "choices": [choice]}

    yield chunk({"role": "assistant", "content": ""})
    for piece in _pieces(said.text):
        yield chunk({kind: piece})
    yield chunk({}, _FINISH.get(said.stop, "stop"))
    if said.usage:
        yield {**chunk({}), "choices": [], "usage": _completion_usage(*said.usage)}


def _message(said: Said) -> dict[str, Any]:
    reasons = {"finished": "end_turn", "truncated": "max_tokens", "refused": "refusal"}
    reply: dict[str, Any] = {
        "id": "a",
        "type": "message",
        "role": "assistant",
        "model": "test",
        "content": [{"type": "text", "text": said.text}],
        "stop_reason": reasons[said.stop],
        "stop_sequence": None,
    }
    if said.usage:
        into, cached, out = said.usage
        reply["usage"] = {
            "input_tokens": into - cached - 10,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 10,
            "output_tokens": out,
        }
    return reply


def _message_events(said: Said) -> Iterator[Event]:
    reply = _message(said)
    usage = reply.get("usage")
    begun = {**reply, "content": [], "stop_reason": None}
    if usage:
        begun["usage"] = {**usage, "output_tokens": 1}
    yield {"type": "message_start", "message": begun}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "ping"}
    for piece in _pieces(said.text):
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
    yield {"type": "content_block_stop", "index": 0}
    counted = {"usage": {"output_tokens": usage["output_tokens"]}} if usage else {}
    yield {"type": "message_delta", "delta": {"stop_reason": reply["stop_reason"]}, **counted}
    yield {"type": "message_stop"}


_WHOLE: dict[str, Callable[[Said], dict[str, Any]]] = {
    "responses": _response,
    "chat": _completion,
    "messages": _message,
}
_EVENTS: dict[str, Callable[[Said], Iterator[Event]]] = {
    "responses": _response_events,
    "chat": _completion_events,
    "messages": _message_events,
}
