"""timm's architectures that have nothing to castle, each with its own reason.

The reason is a fact of the architecture. One that has softmax attention between tokens and is not known here is not in
this list; it is refused with what its model is.
"""

from __future__ import annotations

CONVOLUTIONS = "no attention between tokens: it is made of convolutions"

WITHOUT = "no attention between tokens"
"""Of a model whose architecture has some in other sizes."""
UNKNOWN = "its attention is of a kind that is not known here"

REASONS: dict[str, str] = {
    **dict.fromkeys(
        (
            "convmixer", "convnext", "cspnet", "cspnext", "densenet", "dla", "dpn", "efficientnet", "fasternet",
            "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_next", "inception_resnet_v2", "inception_v3",
            "inception_v4", "lcnetv2", "mobilenetv3", "nasnet", "nfnet", "pnasnet", "rdnet", "regnet", "repghost",
            "repvit", "res2net", "resnet", "resnetv2", "rexnet", "selecsls", "starnet", "tresnet", "vgg", "vovnet",
            "xception", "xception_aligned",
        ),
        CONVOLUTIONS,
    ),
    **dict.fromkeys(
        ("resnest", "senet", "sknet"), "its attention weighs channels, not tokens: it is made of convolutions"
    ),
    "byobnet": "its attention weighs channels or a global context, not pairs of tokens: it is made of convolutions",
    "coat": "its factorised attention takes the softmax over keys alone and is already linear in the tokens",
    "edgenext": "its cross-covariance attention is between channels and already linear in the tokens",
    "efficientvim": "its hidden state mixer is a state space and already linear in the tokens",
    "efficientvit_mit": "its attention has ReLU in the place of softmax and is already linear in the tokens",
    "focalnet": "its focal modulation has no keys and is already linear in the tokens",
    "mambaout": "no attention between tokens: it is made of gated convolutions",
    "mlp_mixer": "no attention: layers of fixed weights mix the tokens",
    "sequencer": "no attention: recurrent layers run along rows and columns",
    "swiftformer": "its additive attention has one global query and is already linear in the tokens",
    "castling_convert.timm_entry": "it is no model of timm's, and made by castling-convert",
    "xcit": "its cross-covariance attention is between channels and already linear in the tokens",
}  # fmt: skip
"""By the module of timm."""
