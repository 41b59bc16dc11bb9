"""The fields of a chat: what is honoured, and what becomes of them before a template reads them."""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import Field, model_validator

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.fields import Fields, NumTop, PositiveInt, Unsupported
from graft_runtime.server.openai.shapes import MESSAGES, TOOL_CHOICE, TOOLS, as_shape
from graft_runtime.server.openai.shown_fields import SHOWN_UNSUPPORTED, ShownFields
from graft_runtime.server.openai.tool_fields import Tools, parse_tools
from graft_runtime.text.conversation import Conversation, TemplateTraits

TEMPLATE_UNSUPPORTED: Final[Unsupported] = {
    "chat_template": (),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
}
"""A request never brings a template: it runs in the server."""

CHAT_UNSUPPORTED: Final[Unsupported] = {
    **SHOWN_UNSUPPORTED,
    **TEMPLATE_UNSUPPORTED,
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
}
MAX_VARIABLES: Final = 32
MAX_DOCUMENTS: Final = 256
_TAKEN: Final = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Names that a template reads and that have fields of their own."""
EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

DEFAULT_TOOL_PROMPT: Final = (
    "You can call these functions. To call one, answer with nothing but a JSON object of its name "
    'and its arguments: {"name": ..., "parameters": {...}}.'
)


class TemplateFields(Fields):
    """Fields that decide how messages become a prompt."""

    messages: Any = Field(json_schema_extra=as_shape(MESSAGES))
    tools: Any = Field(default=None, json_schema_extra=as_shape(TOOLS))
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    documents: list[dict[str, Any]] = Field(default=[], max_length=MAX_DOCUMENTS)
    chat_template_kwargs: dict[str, Any] = Field(default={}, max_length=MAX_VARIABLES)

    @model_validator(mode="after")
    def _either_goes_on_or_answers(self) -> TemplateFields:
        if self.continue_final_message and self.add_generation_prompt:
            message = "`continue_final_message` excludes `add_generation_prompt`"
            raise InvalidRequestError(message, param="continue_final_message")
        taken = _TAKEN & self.chat_template_kwargs.keys()
        if taken:
            name = f"chat_template_kwargs.{min(taken)}"
            raise InvalidRequestError(f"`{name}` has a field of its own", param=name)
        return self


class ChatFields(ShownFields, TemplateFields):
    """What this surface honours."""

    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool = False
    top_logprobs: NumTop = 0
    echo: bool = False
    tool_choice: Any = Field(default=None, json_schema_extra=as_shape(TOOL_CHOICE))
    tool_prompt: str | None = None
    guideline: str | None = None
    """LoRAX's, for templates that read it."""
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None
    include_reasoning: bool = True

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatFields:
        if self.top_logprobs and not self.logprobs:
            message = "`top_logprobs` needs `logprobs`"
            raise InvalidRequestError(message, param="top_logprobs")
        if self.reasoning_effort not in (None, *EFFORTS):
            message = f"`reasoning_effort` must be one of {', '.join(EFFORTS)}"
            raise InvalidRequestError(message, param="reasoning_effort")
        return self

    def parse_tools(self) -> Tools:
        """Return the tools.

        Raises:
            InvalidRequestError: They are malformed.
        """
        return parse_tools(self.tools, self.tool_choice, is_parallel=self.parallel_tool_calls)


def conversation(
    fields: TemplateFields, messages: list[dict[str, Any]], tools: Tools, template: TemplateTraits
) -> Conversation:
    """Return what the template is applied to.

    Raises:
        InvalidRequestError: The template has no place for something that was asked.
    """
    if fields.documents and "documents" not in template.reads:
        raise _unread("documents")
    if fields.continue_final_message and messages[-1].get("tool_calls"):
        message = "`continue_final_message` needs a last message that is text"
        raise InvalidRequestError(message, param="continue_final_message")
    variables = dict(fields.chat_template_kwargs)
    shown = tools.shown
    prompt = None
    if isinstance(fields, ChatFields):
        variables |= _effort(fields.reasoning_effort, template)
        prompt = fields.tool_prompt
        if fields.guideline is not None:
            if "guideline" not in template.reads:
                raise _unread("guideline")
            variables["guideline"] = fields.guideline
    if shown and "tools" not in template.reads:
        messages, shown = _told(messages, tools, prompt), ()
    elif prompt is not None:
        raise _unread("tool_prompt")
    prompts = fields.add_generation_prompt
    return Conversation(
        messages=messages,
        tools=shown,
        documents=fields.documents,
        variables=variables,
        add_generation_prompt=not fields.continue_final_message if prompts is None else prompts,
        continues_last=fields.continue_final_message,
        add_special_tokens=fields.add_special_tokens,
    )


def _effort(effort: str | None, template: TemplateTraits) -> dict[str, Any]:
    """Return how a template is told how long the model should think."""
    if effort is None:
        return {}
    if "reasoning_effort" in template.reads:
        return {"reasoning_effort": effort}
    if "enable_thinking" in template.reads:
        return {"enable_thinking": effort != "none"}
    if effort == "none" and not template.thinks:
        return {}
    raise _unread("reasoning_effort")


def _told(messages: list[dict[str, Any]], tools: Tools, prompt: str | None) -> list[dict[str, Any]]:
    """Tell of the tools in the last message, where the template has no place for them."""
    functions = json.dumps([each["function"] for each in tools.schemas], ensure_ascii=False)
    *others, last = messages
    told = f"{last['content']}\n---\n{prompt or DEFAULT_TOOL_PROMPT}\n{functions}"
    return [*others, {**last, "content": told}]


def _unread(name: str) -> InvalidRequestError:
    message = f"`{name}` is not supported: the model's chat template does not read it"
    return InvalidRequestError(message, param=name)
