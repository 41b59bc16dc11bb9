"""One inference from its inputs to its output tensors, whatever carried them here.

The HTTP and the gRPC surface both call `prepare` and then read `answers`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from graft_runtime.errors import InvalidRequestError, ModelNotFoundError
from graft_runtime.server.backend import Target
from graft_runtime.server.body import off_loop
from graft_runtime.server.choices import fork, generate_groups
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.fields import MAX_NAME_CHARS, parse_fields
from graft_runtime.server.generation import Job
from graft_runtime.server.kserve.answer import Answer
from graft_runtime.server.kserve.contract import VERSION, Inputs
from graft_runtime.server.kserve.sampling import KNOWN_UNSUPPORTED, TritonFields
from graft_runtime.server.kserve.tensors import Tensor
from graft_runtime.server.prompts import admit, encode_text, fit_output, job_ids
from graft_runtime.server.structured import constrain
from graft_runtime.server.thought_limits import limit_after


@dataclass(frozen=True)
class Call:
    """A request ready to run."""

    model_name: str
    """As the client wrote it; echoed."""
    prompt: str
    jobs: tuple[Job, ...]
    stream: bool
    outputs: tuple[str, ...]
    returns_prompt: bool
    num_top: int | None


def resolve_model(
    frontend: Frontend, name: str, version: str = "", route_key: str | None = None
) -> Target:
    """Return what a model's name means now.

    Args:
        frontend: Who knows the models.
        name: The model's.
        version: As the client wrote it.
        route_key: Requests of one key get the same revision of an adapter.

    Raises:
        ModelNotFoundError: Nothing serves under this name, or not in this version.
        AdapterUnavailableError: It is on its way.
    """
    message = f"Request for unknown model: '{name[:MAX_NAME_CHARS]}' is not found"
    if version not in ("", VERSION) or len(name) > MAX_NAME_CHARS:
        raise ModelNotFoundError(message, param="model")
    try:
        return frontend.backend.resolve(name, route_key)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(message, param="model") from error


async def prepare(
    frontend: Frontend, exchange: Exchange, model_name: str, version: str, inputs: Inputs
) -> Call:
    """Check a request and turn its text into tokens.

    Raises:
        RequestError: It is refused; which one says why.
    """
    fields, ignored = await off_loop(
        exchange, parse_fields, TritonFields, inputs.sampling, KNOWN_UNSUPPORTED
    )
    exchange.ignored_fields = (*ignored, *inputs.ignored)
    route_key = exchange.route_key or fields.user
    target = resolve_model(frontend, model_name, version, route_key)
    target = _with_adapter(frontend, target, fields.lora_name, route_key)
    if inputs.stream and inputs.exclude_input is False:
        message = "When streaming, `exclude_input_in_output` = False is not allowed."
        raise InvalidRequestError(message, param="exclude_input_in_output")
    text = await admit(frontend, len(inputs.text))
    limit = frontend.backend.max_model_len
    ids = await encode_text(
        text.tokenizer, inputs.text, add_special_tokens=True, max_model_len=limit
    )
    if not ids:
        raise InvalidRequestError("input 'text_input' must not be empty", param="text_input")
    sampling = fields.told(
        text.tokenizer,
        frontend.settings,
        max_tokens=fit_output(len(ids), fields.max_tokens, None, limit),
        needs_logprobs=not {"logprobs", "cumulative_logprob"}.isdisjoint(inputs.outputs),
        thought_limit=await limit_after(fields.thinking_token_budget, text, ids),
    )
    sampling = await constrain(frontend, sampling, fields.form)
    job = Job(
        job_ids(exchange, 1)[0],
        ids,
        sampling,
        target,
        text.tokenizer,
        fields.stop,
        fields.include_stop_str_in_output,
        terms=fields.terms,
    )
    return Call(
        model_name=model_name,
        prompt=inputs.text,
        jobs=tuple(fork(job, fields.n)),
        stream=inputs.stream,
        outputs=inputs.outputs,
        returns_prompt=not inputs.stream and not inputs.exclude_input,
        num_top=fields.logprobs,
    )


def _with_adapter(
    frontend: Frontend, target: Target, lora_name: str | None, route_key: str | None
) -> Target:
    """Return the target that an adapter's name beside the model's makes of it."""
    if not lora_name:
        return target
    try:
        adapter = frontend.backend.resolve(lora_name, route_key)
    except ModelNotFoundError as error:
        message = "LoRA adapter of the name in `lora_name` is not found"
        raise InvalidRequestError(message, param="lora_name") from error
    if target.revision is not None and target.served_name != adapter.served_name:
        message = "`lora_name` names another adapter than the model's name does"
        raise InvalidRequestError(message, param="lora_name")
    return adapter


@dataclass(frozen=True)
class Reply:
    """One response."""

    tensors: list[Tensor]
    is_last: bool


async def answers(
    frontend: Frontend, exchange: Exchange, call: Call
) -> AsyncGenerator[Reply, None]:
    """Yield each response's output tensors: one response in all, or one per step of a stream.

    Closing this generator aborts the request.
    """
    answer = Answer(call.jobs, call.outputs, call.prompt if call.returns_prompt else "")
    async with aclosing(generate_groups(frontend, exchange, [call.jobs])) as pieces:
        async for index, piece in pieces:
            answer.add(index, piece)
            if call.stream and answer.has_news:
                yield Reply(answer.take(), answer.has_ended)
    if not call.stream:
        yield Reply(answer.take(), is_last=True)
