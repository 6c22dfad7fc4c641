"""Templates that loop, recurse or allocate without end: an error in seconds, with little memory."""

import time
from pathlib import Path

import pytest

from schemas.errors import TrainError
from train.tokens import template_budget
from train.tokens.chat_template import Template, compile_template, find_template
from train.tokens.loss_mask import TEMPLATE_FAILURES

ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops in a macro": "{% macro m() %}{% for a in range(99999) %}{{ m2() }}{% endfor %}{% endmacro %}"
    "{% macro m2() %}{% for a in range(99999) %}{% endfor %}{% endmacro %}{{ m() }}",
    "sorting": "{% for a in range(99999) %}{% set x = range(99999) | sort | list %}{% endfor %}",
}
LARGE = {
    "repetition": "{{ 'a' * 10000000000 }}",
    "repetition of a list": "{{ ([1] * 10000000000) | length }}",
    "doubling": "{% set ns = namespace(x='aaaaaaaaaa') %}{% for a in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "output": "{% set x = 'a' * 9000000 %}{% for a in range(99999) %}{{ x }}{% endfor %}",
    "width": "{{ 'a' | center(10000000000) }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "format method": "{{ '{:>10000000000}'.format(1) }}",
    "padding": "{{ 'a'.ljust(10000000000) }}",
    "nested lists": "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x | tojson }}",
    "long output": "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
}
FAILING = {
    "range": "{% for a in range(1000000000) %}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "power": "{{ 10 ** 10000000 }}",
    "product": "{% set ns = namespace(x=3) %}{% for a in range(60) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
}
INVALID = {
    "brackets": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "blocks": "{% if true %}" * 2_000 + "{% endif %}" * 2_000,
    "sum": "{{ " + "1 + " * 20_000 + "1 }}",
    "size": "a" * (2 << 20),
}


@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
def test_a_template_without_an_end_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "SECONDS", 0.5)
    monkeypatch.setattr(template_budget, "MEMORY", 256 << 20)
    start = time.monotonic()
    with pytest.raises(TrainError, match=r"The template x (takes more than|needs more than|renders a conversation)"):
        compile_template(Template("x", (ENDLESS | LARGE)[name]))()
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("name", FAILING)
def test_a_rendering_that_fails_drops_its_conversation(name: str) -> None:
    with pytest.raises(TEMPLATE_FAILURES):
        compile_template(Template("x", FAILING[name]))()


@pytest.mark.parametrize("name", INVALID)
def test_a_template_that_cannot_be_compiled_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.jinja").write_text(INVALID[name])
    with pytest.raises(TrainError, match=r"The template x\.jinja (is not valid Jinja|has .* characters)"):
        compile_template(find_template(str(tmp_path / "x.jinja"), tmp_path))


def test_limits_end_with_the_rendering() -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    assert compile_template(Template("x", "{{ 'ab' * 3 ~ 2 * 21 ~ 2 ** 3 }}"))() == "ababab428"
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_timer_of_another_library_continues_after_the_rendering() -> None:
    import signal

    fired: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: fired.append(number))
    signal.setitimer(signal.ITIMER_REAL, 100, 50)
    try:
        assert compile_template(Template("x", "{{ 'ab' * 3 }}"))() == "ababab"
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert (90 < left < 100, interval) == (True, 50)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with template_budget.render_limits():
            time.sleep(0.1)
        assert fired == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_is_not_of_python_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    changed: list[object] = []
    monkeypatch.setattr(signal, "getsignal", lambda _: None)  # Python's value for a handler in C
    monkeypatch.setattr(signal, "signal", lambda *arguments: changed.append(arguments))
    assert compile_template(Template("x", "{{ 'ab' * 3 }}"))() == "ababab"
    assert changed == []
