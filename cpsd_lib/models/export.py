"""Models for other programs: one plain graph in ONNX, and timm's own state dict."""

import copy
import logging

import torch
from torch import nn

from cpsd_lib.models.classifier import PRESETS, Classifier
from cpsd_lib.teachers import logits_of


class Plain(nn.Module):
    """Images uint8 [B, 3, S, S] -> (logits [B, C], probabilities [B, C]): a Classifier or PartTeachers as one graph.

    A trunk that the experts have in common is a part of it, runs once and remembers nothing.
    """

    def __init__(self, model):
        super().__init__()
        shared = [expert.shared[0] for expert in getattr(model, "experts", ()) if hasattr(expert, "shared")]
        self.model, self.trunk = model, shared[0] if shared else None

    def forward(self, images):
        """Return (logits, probabilities), float32."""
        images = images.float() / 255
        if self.trunk is None:
            logits = logits_of(self.model(images))
        else:
            features = self.trunk.features(images)
            outputs = [one.read(one.backbone.forward_features(features), images) for one in self.model.experts]
            logits = self.model.partition.merge([output.logits for output in outputs])
        return logits, logits.sigmoid()


def write_onnx(model, path, images, metadata):
    """Write a model in eval mode as ONNX, its normalisation included, and return its largest difference in onnxruntime.

    Input "images", uint8 [batch, 3, S, S], any batch; outputs "logits" and "probabilities" [batch, C]. images: uint8 tensor
    [N, 3, S, S] that both compute, the difference is of their logits; metadata {name: text} is kept in the file.
    Raises ImportError where the extra `onnx` is not installed, ValueError where the logits differ by more than rounding.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the format onnx needs what {error.name} is of: pip install 'cpsd_lib[onnx]'") from error
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)  # a line a node that it does not fold
    plain = Plain(copy.deepcopy(model)).eval()  # an export leaves tensors without values in what a module remembers
    written = torch.onnx.export(
        plain,
        (torch.zeros(2, *images.shape[1:], dtype=torch.uint8),),
        dynamo=True,
        input_names=["images"],
        output_names=["logits", "probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    ).model_proto
    onnx.helper.set_model_props(written, metadata)
    onnx.save(written, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = Plain(model)(images)[0]
    found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    difference = (found - expected).abs().max().item()
    if not difference <= 1e-3 * max(1.0, expected.abs().max().item()):
        what = f"onnxruntime computes other logits than the model, up to {difference:.2g} apart"
        raise ValueError(f"{what}: not exported")
    return difference


def timm_state(model, name, options):
    """Return (state dict, the names of its tensors that the model does not have) of a Classifier's backbone, as timm has it.

    name, options: those of `build_model`; `timm.create_model(name, num_classes=0, **options)` loads it strictly. What stands
    behind the last map is left out of a model whose head reads that map: it has timm's first values.
    Raises ValueError for merged experts, which are many backbones.
    """
    if type(model) is not Classifier:
        raise ValueError("the format timm is one backbone, and this model is many experts; take another row or format")
    own = model.backbone.state_dict()
    import timm

    fresh = timm.create_model(PRESETS.get(name, (name,))[0], pretrained=False, num_classes=0, **options)
    added = [one for one in fresh.state_dict() if one not in own]
    fresh.load_state_dict(fresh.state_dict() | own)
    return fresh.state_dict(), added
