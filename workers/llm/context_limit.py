"""Reads the models' data that genai-prices ships, writes nothing: how long a role's prompts may be."""

from codeconvoy.workers.llm import tokens
from codeconvoy.workers.llm.prompts import MAX_PROMPT_CHARS
from codeconvoy.workers.llm.provider import DEFAULT_MAX_OUTPUT_TOKENS
from codeconvoy.workers.roles.role import Role


def prompt_limit(role: Role) -> int:
    """The characters that a role's prompts may have: what its option says, or what its model takes.

    Of the model's context, where that is known, room is left for two answers: the one that is asked
    for, and an earlier one that was no good and is shown to the model again.
    """
    if "max_prompt_chars" in role.options:
        return int(role.options["max_prompt_chars"])
    window = context_window(role.provider, role.model)
    if window is None:
        return MAX_PROMPT_CHARS
    answers = 2 * int(role.options.get("max_output_tokens", DEFAULT_MAX_OUTPUT_TOKENS))
    return min(MAX_PROMPT_CHARS, tokens.room(max(window - answers, window // 2)))


def context_window(provider: str, model: str) -> int | None:
    """The tokens that a model takes; None where that is not known."""
    from genai_prices.data_snapshot import get_snapshot  # only processes that call models need the data

    try:
        _, found = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    return found.context_window
