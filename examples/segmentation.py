"""Castle the backbone of a segmenter. Some minutes on two cores.

    python examples/segmentation.py                    a small segmenter on scenes that are made here
    python examples/segmentation.py --data DIR --backbone dinov2_s --image-size 280

DIR holds `train` and `val`, each with `images` and `masks`: see docs/dense.md. The backbone is one of
timm's, pretrained (or with --weights FILE), and stays as it is; a light head is trained on its maps. Then the backbone
is castled, the head untouched. What both models say of some scenes is drawn into `OUTPUT/scenes.png` and the report.
"""

from dense import main

if __name__ == "__main__":
    main("segmenter", "masks", 5, __doc__)
