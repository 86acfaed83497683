"""Templates of tasks see documents and nothing behind them."""

from __future__ import annotations

import pytest
from jinja2.exceptions import SecurityError

from fitness._lm_eval.isolation import sandbox_templates


def test_templates_cannot_reach_python() -> None:
    from lm_eval import utils

    sandbox_templates()
    boxed = utils.env
    sandbox_templates()
    assert utils.env is boxed
    for template in (
        "{{ cycler.__init__.__globals__.os.getpid() }}",
        "{{ text.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__}'.format(text) }}",
    ):
        with pytest.raises(SecurityError):
            utils.apply_template(template, {"text": "x"})


def test_templates_render_as_before() -> None:
    from lm_eval import utils

    sandbox_templates()
    template = (
        "{% for c in choices %}{{ loop.index }}. {{ c.strip() }}\n{% endfor %}{{ text | regex_replace('a', 'b') }}\n"
    )
    assert utils.apply_template(template, {"choices": [" x", "y "], "text": "banana"}) == "1. x\n2. y\nbbnbnb\n"
