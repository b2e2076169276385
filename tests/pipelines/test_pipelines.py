"""Real pipelines of diffusers: right at threshold 0, and every call is given its step and its branch."""

import pytest
from image_pipelines import IMAGE_PIPELINES
from pipelines import check_compiled
from tiers import slow_unless

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("spec", slow_unless(lambda spec: spec.fast, IMAGE_PIPELINES, lambda spec: spec.name))
def test_a_pipeline(spec):
    check_compiled(spec)
