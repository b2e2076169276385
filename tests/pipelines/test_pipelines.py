"""Real pipelines of diffusers: right at threshold 0, and every call is given its step and its branch."""

import pytest
from audio_pipelines import AUDIO_PIPELINES
from image_pipelines import IMAGE_PIPELINES
from ltx_pipelines import LTX_PIPELINES
from more_video_pipelines import MORE_VIDEO_PIPELINES
from pipelines import check_compiled
from tiers import slow_unless
from video_pipelines import HUNYUAN_PIPELINES, WAN_PIPELINES

PIPELINES = IMAGE_PIPELINES + WAN_PIPELINES + HUNYUAN_PIPELINES + LTX_PIPELINES + MORE_VIDEO_PIPELINES + AUDIO_PIPELINES

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("spec", slow_unless(lambda spec: spec.fast, PIPELINES, lambda spec: spec.name))
def test_a_pipeline(spec):
    check_compiled(spec)


@pytest.mark.parametrize("spec", slow_unless(lambda spec: spec is PIPELINES[0], PIPELINES, lambda spec: spec.name))
def test_a_pipeline_compiled_in_place(spec):
    check_compiled(spec, in_place=True)
