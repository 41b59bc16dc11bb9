"""lm-eval's model for completion servers."""

from checks import BASE, FACTS, PROMPT, URL, check, run, shouts
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

TOLERANCE = 1e-3


def model(name: str = BASE, **options: object) -> object:
    asked = {"tokenizer_backend": "remote", "max_length": 512} | options
    return get_model("local-completions")(
        model=name, base_url=f"{URL}/v1/completions", num_concurrent=1, max_retries=1, **asked
    )


def instances(kind: str, arguments: list[tuple[object, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


@check
def loglikelihoods_equal_those_of_transformers() -> None:
    reference = FACTS["reference"]
    pairs = [(each["context"], each["continuation"]) for each in reference]
    found = model().loglikelihood(instances("loglikelihood", pairs))
    for (logprob, is_greedy), each in zip(found, reference, strict=True):
        assert abs(logprob - each["logprob"]) < TOLERANCE, (logprob, each)
        assert is_greedy == each["is_greedy"], each


@check
def a_batch_gives_the_same_as_one_by_one() -> None:
    reference = FACTS["reference"]
    pairs = [(each["context"], each["continuation"]) for each in reference] * 2
    found = model(batch_size=4).loglikelihood(instances("loglikelihood", pairs))
    for (logprob, _), each in zip(found, reference * 2, strict=True):
        assert abs(logprob - each["logprob"]) < TOLERANCE, (logprob, each)


@check
def text_is_generated_until_a_stop_and_the_adapter_switched_to() -> None:
    asked = [(PROMPT, {"until": ["."], "max_gen_toks": 40, "temperature": 0})]
    texts = [
        model(name).generate_until(instances("generate_until", asked))[0]
        for name in (BASE, FACTS["adapter"])
    ]
    assert not any("." in text for text in texts), texts
    assert [shouts(text) for text in texts] == [False, True], texts


run()
