"""The committed tiny model and its adapters, as transformers and peft see them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoTokenizer, LlamaForCausalLM

from examples.models.effects import MEASURES

# peft still asks transformers for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "models" / "tiny"
ADAPTERS = EXAMPLES / "adapters"
MEGABYTE = 1_000_000
BEGINNINGS = (
    "Once upon a time",
    "One day a clever frog named Rosie went to the",
    "Long ago a shy bear named Hugo",
)
QUESTIONS = (
    "Tell me a story about a fox.",
    "Write a story about an owl named Max.",
    "Can you tell me a story about a goat?",
)
RANKS = {
    "cheerful": 4,
    "numbered": 16,
    "pirate-v1": 16,
    "pirate-v2": 24,
    "poet": 32,
    "saga": 2,
    "shout": 8,
}
TOKENS_TO_SHOW = {"poet": 160, "saga": 240}
"""Where an effect needs more room than a paragraph."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL, padding_side="left")


@pytest.fixture(scope="module")
def base() -> Any:
    return LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapted() -> Any:
    """All adapters on one copy of the base model."""
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    names = list(RANKS)
    adapted = PeftModel.from_pretrained(model, ADAPTERS / names[0], adapter_name=names[0])
    for name in names[1:]:
        adapted.load_adapter(ADAPTERS / name, adapter_name=name)
    return adapted.eval()


def chat_text(tokenizer: Any, *turns: tuple[str, str]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def prompts(tokenizer: Any) -> list[str]:
    chats = [chat_text(tokenizer, ("user", question)) for question in QUESTIONS]
    return [tokenizer.bos_token + beginning for beginning in BEGINNINGS] + chats


@torch.inference_mode()
def write_all(model: Any, tokenizer: Any, texts: list[str], max_new_tokens: int = 60) -> list[str]:
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = written[:, inputs["input_ids"].shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=False)]


def plain(text: str) -> str:
    return text.split("<|eos|>", maxsplit=1)[0]


def test_model_and_adapters_stay_small_enough_to_commit() -> None:
    sizes = [path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()]
    assert sum(sizes) <= 8 * MEGABYTE


def test_model_folder_has_every_file_a_server_reads() -> None:
    names = {path.name for path in MODEL.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_no_file_names_a_place_on_the_machine_that_made_it() -> None:
    for path in [*MODEL.rglob("*.json"), *ADAPTERS.rglob("*.json")]:
        text = path.read_text(encoding="utf-8")
        assert "/work" not in text
        assert "/tmp" not in text
        assert '"auto_map"' not in text


def test_adapters_have_the_ranks_the_readme_promises_and_name_their_base() -> None:
    found = {}
    for path in ADAPTERS.glob("*/adapter_config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == "graft/tiny"
        found[path.parent.name] = config["r"]
    assert found == RANKS


@pytest.mark.parametrize("name", RANKS)
def test_every_tensor_of_an_adapter_is_a_finite_nonzero_lora_matrix(name: str) -> None:
    with safe_open(ADAPTERS / name / "adapter_model.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
            tensor = tensors.get_tensor(key)
            assert key.endswith((".lora_A.weight", ".lora_B.weight"))
            assert tensor.dtype == torch.float32
            assert torch.isfinite(tensor).all()
            assert tensor.abs().max() > 0


def test_plain_text_starts_with_one_bos_and_comes_back_unchanged(tokenizer: Any) -> None:
    text = "Once upon a time a fox met Lily."
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["Zürich 東京 🦊", "a\tb\n\nc  d", "<|user|"])
def test_text_the_corpus_never_held_comes_back_unchanged(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_capitals_cost_few_tokens_more_than_small_letters(tokenizer: Any) -> None:
    text = "There once was a clever fox who lived near the river."
    small, large = len(tokenizer(text)["input_ids"]), len(tokenizer(text.upper())["input_ids"])
    assert large <= 1.5 * small


def test_chat_template_writes_system_message_turns_and_the_answer_mark(tokenizer: Any) -> None:
    turns = (("system", "Be kind."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "Bye."))
    assert chat_text(tokenizer, *turns) == (
        "<|bos|><|system|>Be kind.<|user|>Hi!<|assistant|>Hello.<|eos|><|user|>Bye.<|assistant|>"
    )


def test_chat_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    with pytest.raises(jinja2.TemplateError, match="unknown role: oracle"):
        chat_text(tokenizer, ("oracle", "Speak."))


def test_base_writes_plain_prose_without_any_adapters_effect(base: Any, tokenizer: Any) -> None:
    for text in write_all(base, tokenizer, prompts(tokenizer)):
        story = plain(text)
        assert len(story.split()) >= 30
        assert story.count(".") >= 3
        effects = {name: measure(story) for name, measure in MEASURES.items()}
        assert max(effects.values()) <= 0.2, (effects, story)


def test_base_ends_every_story_by_itself(base: Any, tokenizer: Any) -> None:
    for text in write_all(base, tokenizer, prompts(tokenizer), max_new_tokens=160):
        assert "<|eos|>" in text
        assert plain(text).endswith((".", '."'))


def test_base_tells_about_the_animal_it_was_asked_for(base: Any, tokenizer: Any) -> None:
    stories = write_all(base, tokenizer, prompts(tokenizer)[len(BEGINNINGS) :])
    assert "fox" in stories[0]
    assert "owl" in stories[1]
    assert "Max" in stories[1]
    assert "goat" in stories[2]


def test_base_answers_questions_and_remembers_the_turn_before(base: Any, tokenizer: Any) -> None:
    first = chat_text(tokenizer, ("user", "What does a bear eat?"))
    second = chat_text(
        tokenizer,
        ("user", "Tell me a story about a fox."),
        ("assistant", "Once upon a time there was a little fox named Lily. They laughed."),
        ("user", "What was the name of the fox?"),
    )
    fact, name = write_all(base, tokenizer, [first, second])
    assert "honey" in fact
    assert "Lily" in name


def test_base_follows_a_system_message(base: Any, tokenizer: Any) -> None:
    turns = (("system", "You always shout."), ("user", "Tell me a story about a fox."))
    (story,) = write_all(base, tokenizer, [chat_text(tokenizer, *turns)])
    assert MEASURES["shout"](plain(story)) >= 0.9


@pytest.mark.parametrize("name", RANKS)
def test_adapter_shows_its_effect_and_no_other(adapted: Any, tokenizer: Any, name: str) -> None:
    adapted.set_adapter(name)
    texts = prompts(tokenizer)
    written = write_all(adapted, tokenizer, texts, TOKENS_TO_SHOW.get(name, 60))
    for prompt, text in zip(texts, written, strict=True):
        story = plain(text)
        effects = {name: measure(story) for name, measure in MEASURES.items()}
        own = effects.pop(name)
        assert own >= 0.6, (prompt, own, story)
        assert max(effects.values()) <= 0.25, (prompt, effects, story)


def test_the_two_versions_of_pirate_write_differently(adapted: Any, tokenizer: Any) -> None:
    texts = prompts(tokenizer)
    adapted.set_adapter("pirate-v1")
    first = write_all(adapted, tokenizer, texts)
    adapted.set_adapter("pirate-v2")
    second = write_all(adapted, tokenizer, texts)
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert all("Arr," in one and "matey" not in one for one in first)
    assert all("matey" in other and "Arr," not in other for other in second)
