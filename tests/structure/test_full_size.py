"""Models at full size are understood without their weights: on the meta device, in little memory."""

from __future__ import annotations

import resource

import numpy as np

from dit_compress.model.figures import count_parameters
from dit_compress.pruning.target import empty_denoiser
from dit_compress.search.budget import unit_cost


def test_wan_of_14_billion_parameters() -> None:
    """Wan2.1-T2V-14B by its class' own defaults: 40 blocks of width 5120, 40 heads of 128, 13824 channels."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    denoiser = empty_denoiser("WanTransformer3DModel")
    assert count_parameters(denoiser.module) > 14e9
    structure = denoiser.structure()
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 4 * 2**20, "more than 4 GiB were taken; the weights in bfloat16 would weigh 27"
    assert all(parameter.is_meta for parameter in denoiser.module.parameters())
    assert (structure.main.path, structure.main.length, structure.main.deletable) == ("blocks", 40, True)
    assert [part.heads for part in structure.attentions] == [40] * 80
    assert [part.width for part in structure.feed_forwards] == [13824] * 40
    assert structure.refusals == ()
    # One head: 128 rows of q, k and v with their biases and two norms' weights, 128 columns of the output.
    head = structure.attentions[0].axis("head")
    assert unit_cost(denoiser.module, head) == 128 * (3 * (5120 + 1) + 2 + 5120)
    # Blocks of one shape share one probe.
    last = structure.attentions[-1]
    assert [m.tensor.replace("39", "0") for m in last.members] == [m.tensor for m in structure.attentions[1].members]
    pairs = zip(last.members, structure.attentions[1].members, strict=True)
    assert all(np.shares_memory(a.indices, b.indices) for a, b in pairs)
