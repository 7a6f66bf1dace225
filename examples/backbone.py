"""Transfer from a pretrained network to pictures in folders, with the parts of the library.

    pip install .
    python examples/backbone.py --data flowers --base mobilenet_v3_small

Each picture goes through the frozen network once, in the size of that network. A new classifier
learns from the features. The weights are downloaded once, if ``--weights`` names no file.
``cifar-tl train`` with the same ``--data`` and ``--base`` does more: it keeps the features in
files, and it trains a control.
"""

import argparse
import dataclasses

from torch import Tensor

from cifar_tl import (
    TUNED,
    EpochRecord,
    extract_features,
    fit,
    load_backbone,
    load_data,
    read_images,
    save_model,
    transfer_model,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a folder with train/CLASS/*.jpg")
    parser.add_argument("--base", default="mobilenet_v3_small", help="of torchvision, or timm/NAME")
    parser.add_argument("--weights", help="a file with its state_dict (default: published)")
    parser.add_argument("--epochs", type=int, help="(default: more for fewer pictures)")
    parser.add_argument("--out", help="save the model in this file, for cifar-tl predict")
    options = parser.parse_args()

    data = load_data(options.data)
    if not data.files or data.validation is None:
        parser.error(f"--data {options.data} is no folder of pictures: name one")
    base = load_backbone(options.base, options.weights)
    model = transfer_model(base, len(data.class_names))  # frozen, with a new classifier

    def features(part: str) -> Tensor:
        pictures = read_images(data.files[part], model.frame, white=data.reading.get("white"))
        found: Tensor = extract_features(model.forward_features, pictures.images, progress=part)
        return found

    def show(epoch: EpochRecord) -> None:
        print(f"epoch {epoch.epoch}: validation accuracy {epoch.val_accuracy:.2%}")

    views = features("train")[None]  # one version of each picture: no mirror images
    recipe = dataclasses.replace(TUNED, epochs=options.epochs)
    plan = recipe.for_stage("transfer", len(data.train.labels))
    model.classifier.dropout.p = plan.dropout  # type: ignore[union-attr]
    fit(
        model.classifier,
        views,
        data.train.labels,
        features("validation"),
        data.validation.labels,
        plan,
        on_epoch=show,
    )
    if options.out:
        model.white = dict(data.reading.get("white", {}))
        save_model(options.out, model, class_names=data.class_names)


if __name__ == "__main__":
    main()
