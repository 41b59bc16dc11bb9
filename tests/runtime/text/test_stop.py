"""Stop strings, whatever the pieces their text arrives in."""

from hypothesis import given
from hypothesis import strategies as st

from graft_runtime.text.stop import StopMatcher

STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)
PIECES = st.lists(st.text("abc", max_size=5), max_size=12)


def run(stops: list[str], pieces: list[str], *, keep: bool) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, keep=keep)
    given_out = ""
    for piece in pieces:
        matched = matcher.push(piece)
        given_out += matched.text
        if matched.stop is not None:
            return given_out, matched.stop
    return given_out + matcher.flush(), None


def reference(stops: list[str], text: str, *, keep: bool) -> tuple[str, str | None]:
    """Look at the text after every character, the way the definition reads."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return (text[:end] if keep else text[: end - len(stop)]), stop
    return text, None


@given(stops=STOPS, pieces=PIECES, keep=st.booleans())
def test_pieces_do_not_change_what_is_found(
    stops: list[str], pieces: list[str], keep: bool
) -> None:
    assert run(stops, pieces, keep=keep) == reference(stops, "".join(pieces), keep=keep)


@given(stops=STOPS, pieces=PIECES)
def test_only_what_may_become_a_match_is_held_back(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    given_out = ""
    for end, piece in enumerate(pieces, 1):
        matched = matcher.push(piece)
        given_out += matched.text
        if matched.stop is not None:
            return
        held = "".join(pieces[:end])[len(given_out) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_kept_match_holds_nothing_back() -> None:
    matcher = StopMatcher(["END"], keep=True)
    assert [matcher.push(piece).text for piece in ("aE", "N")] == ["aE", "N"]
    assert matcher.push("Dxyz").text == "D"


def test_a_false_start_is_given_out_late_but_whole() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.push(piece).text for piece in ("aE", "N", "X")] == ["a", "", "ENX"]
