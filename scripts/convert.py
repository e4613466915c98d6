"""Converts parameters from and to Hugging Face directories.

python scripts/convert.py from-hf DIR OUT     makes a run folder from a Hugging Face Llama directory
python scripts/convert.py to-hf CKPT DIR      makes a directory that transformers and LongShot load from a run folder
"""

from pathlib import Path

from longshot_jax.errors import run_command


def main() -> None:
    from longshot_jax.checkpoints.convert import from_hf, to_hf
    from longshot_jax.cli import OptionParser, add_which
    from longshot_jax.evaluation.model_card import write_model_card

    parser = OptionParser(description="Convert parameters from and to Hugging Face directories.")
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("from-hf", help="make a run folder from a Hugging Face Llama directory")
    importing.add_argument("directory", metavar="DIR", help="directory with config.json and *.safetensors")
    importing.add_argument("out", metavar="OUT", help="run folder to make")
    exporting = commands.add_parser("to-hf", help="make a Hugging Face Llama directory from a run folder")
    exporting.add_argument("checkpoint", metavar="CKPT", help="run folder")
    exporting.add_argument("directory", metavar="DIR", help="directory to make")
    exporting.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype to write")
    add_which(exporting)
    flags = parser.parse_args()
    if flags.command == "from-hf":
        if from_hf(flags.directory, flags.out):
            print(
                f"note: {flags.directory} is an export of a run, and its navigator (longshot.safetensors) was left out: name "
                "the export itself as --checkpoint or config.model.source to keep them"
            )
    else:
        saved = to_hf(flags.checkpoint, flags.directory, flags.dtype, flags.which)
        print(write_model_card(saved, Path(flags.directory).expanduser()))


if __name__ == "__main__":
    run_command(main)
