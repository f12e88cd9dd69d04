"""All passes in the order in which they run. The list is run again until a round changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from nemotrt.errors import UsageError
from nemotrt.trt.surgery.fold_batch_norm import FoldBatchNorm
from nemotrt.trt.surgery.fold_constants import FoldConstants
from nemotrt.trt.surgery.fold_pads import FoldPads
from nemotrt.trt.surgery.fold_scales import FoldScales
from nemotrt.trt.surgery.fuse_activations import FuseActivations
from nemotrt.trt.surgery.integer_lengths import IntegerLengths
from nemotrt.trt.surgery.layer_norm import FuseLayerNorm
from nemotrt.trt.surgery.mask_convolutions import MaskConvolutions
from nemotrt.trt.surgery.merge_duplicates import MergeDuplicates
from nemotrt.trt.surgery.merge_projections import MergeProjections, SharePositions
from nemotrt.trt.surgery.name_batch import NameBatch
from nemotrt.trt.surgery.relative_shift import RelativeShift
from nemotrt.trt.surgery.remove_broadcasts import RemoveBroadcasts
from nemotrt.trt.surgery.remove_dead_nodes import RemoveDeadNodes
from nemotrt.trt.surgery.remove_no_ops import RemoveNoOps
from nemotrt.trt.surgery.share_masks import ShareMasks
from nemotrt.trt.surgery.simplify_casts import SimplifyCasts
from nemotrt.trt.surgery.simplify_shapes import SimplifyShapes
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

PASSES: tuple[SurgeryPass, ...] = (
    RemoveDeadNodes(),
    FoldConstants(),
    SimplifyCasts(),
    MergeDuplicates(),
    NameBatch(),
    SimplifyShapes(),
    RemoveBroadcasts(),
    RemoveNoOps(),
    IntegerLengths(),
    FoldPads(),
    FoldBatchNorm(),
    FuseLayerNorm(),
    FuseActivations(),
    ShareMasks(),
    RelativeShift(),
    FoldScales(),
    # Behind both: they look for the projections of one layer.
    SharePositions(),
    MergeProjections(),
    MaskConvolutions(),
)


def chosen_passes(*, only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[SurgeryPass, ...]:
    """Those named by ``only`` (default: all) without those named by ``skip``, in the order of the list.

    ``mask-convolutions`` adds masks where it is named.

    Raises:
        UsageError: a name that no pass has, or nothing left to do.
    """
    names = [one.name for one in PASSES]
    unknown = [name for name in (*only, *skip) if name not in names]
    if unknown:
        raise UsageError("there is no such pass", found=", ".join(unknown), fix=f"choose from: {', '.join(names)}")
    chosen = [one for one in PASSES if one.name not in skip and (not only or one.name in only)]
    if not chosen:
        raise UsageError("every pass is left out", found=", ".join(skip), fix="skip fewer passes")
    asked = MaskConvolutions.name in only
    return tuple(MaskConvolutions(add=True) if asked and one.name == MaskConvolutions.name else one for one in chosen)
