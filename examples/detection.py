"""Castle the backbone of a detector. Some minutes on two cores.

    python examples/detection.py                    a small detector on scenes that are made here
    python examples/detection.py --data DIR --backbone dinov2_s --image-size 280

DIR holds `train` and `val`, each with `images` and an `instances.json`: see docs/dense.md. The backbone is one of
timm's, pretrained (or with --weights FILE), and stays as it is; a light head is trained on its maps. Then the backbone
is castled, the head untouched. What both models say of some scenes is drawn into `OUTPUT/scenes.png` and the report.
"""

from dense import main

if __name__ == "__main__":
    main("detector", "boxes", 4, __doc__, nms=True)
