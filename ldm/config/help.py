"""The text of --help, made from conf/: usage, examples, groups with their choices, options with their comments."""

from pathlib import Path

from ldm.config import descriptions

EXAMPLES = {
    "train_vae": [
        "data=emoji",
        "data=folder data.root=photos.zip name=photos trainer.max_steps=20000",
        "experiment=mnist trainer.max_time=00:00:08:00",
        "data=emoji base=emoji train=decoder name=sharper",
        "name=emoji resume=true",
    ],
    "train_ldm": [
        "data=emoji",
        "data=folder data.root=photos.zip first_stage=photos",
        "-m network.channels=64,96 diffusion=eps,flow",
        "data=torchvision data.dataset=MNIST first_stage=identity diffusion=ddpm",
    ],
    "sample": [
        "run=emoji 'prompt=a cat above a rocket on a blue background' n=4 guidance=3 out=grid.png",
        "run=emoji prompts_file=prompts.txt",
        "run=digits 'labels=[3,7]' n=2",
    ],
    "check": [
        "data=folder data.root=photos.zip",
        "data=folder data.root=photos data.size=64 trainer.max_time=00:01:00:00",
    ],
    "augment": ["run=photos data.root=photos n=3 temperature=0.7 out=more"],
    "app": ["run=emoji port=7860", "host=0.0.0.0 auth=ME:PASSWORD"],
    "evaluate": [
        "run=emoji",
        "run=emoji stage=vae",
        "run=emoji 'curve.guidance=[1,2,3]' 'curve.steps=[4,8,16]'",
        "run=emoji samples=images_of_another_tool",
    ],
    "score": [
        "run=photos inception=pt_inception-2015-12-05-6726825d.pth",
        "run=photos reference=VIRTUAL_imagenet256_labeled.npz resizing=tensorflow",
        "run=photos dinov2=path/to/dinov2-large clip=path/to/clip-vit-base-patch32",
        "samples=images_of_another_tool reference=real_images n=50000",
    ],
}


def help_text(script: str, conf: Path, program: str) -> str:
    """The help of `script`: what it does, how it is called (`program`), its groups with their choices, its options."""
    file = conf / f"{script}.yaml"
    parts = [descriptions.about(file), "", f"usage: {program} [-m] [KEY=VALUE ...]", ""]
    parts += [f"  {program} {example}" for example in EXAMPLES[script]]
    if groups := descriptions.groups(file):
        parts += ["", "Groups, as GROUP=CHOICE (* is the default):", ""]
        parts += [_group(name, descriptions.choices(conf, name), default) for name, default in groups]
        parts += [
            "",
            "GROUP.OPTION=VALUE sets any option of the chosen class, trainer.X=VALUE any of Lightning's Trainer.",
        ]
    parts += ["", "Options:", "", descriptions.options(file), ""]
    parts += ["-m sweeps over values with commas; --cfg job shows the whole config and runs nothing."]
    return "\n".join(parts)


def _group(name: str, choices: list[str], default: str) -> str:
    marked = [f"{choice}*" if choice == default else choice for choice in choices]
    return f"  {name:12} {' '.join(marked)}"
