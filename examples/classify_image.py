"""Say what is on a picture: with the labels of a classifier, or with texts of your own and a model of pairs.

python examples/classify_image.py MODEL_FOLDER cat.jpg                            # ViT, ResNet, MobileNetV2, …
python examples/classify_image.py CLIP_FOLDER cat.jpg "a cat" "a dog" "an owl"    # CLIP, SigLIP
"""

import sys

import danlu
from danlu.models.vision import ImageModel


def main(folder: str, picture: str, *texts: str) -> None:
    model = danlu.load(folder)
    assert isinstance(model, ImageModel), "not a model of images"
    (found,) = model.choose([picture], texts) if texts else model.classify([picture], top=5)
    for label, probability in found.items():
        print(f"{probability:6.1%}  {label}")


if __name__ == "__main__":
    main(*sys.argv[1:])
