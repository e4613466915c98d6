"""Plan: memory and cost of a run on each device, from compiling its steps without its parameters.

    python scripts/plan.py --config configs/multi.py --devices 8 --accelerator h100-80g [--config.key=value ...]
        [--compiler cuda|cpu] [--no-search] [--output plan.json]

--devices is the product of config.mesh by default. Accelerators: a100-40g, a100-80g, h100-80g, h200, b200. Everything
runs on this machine's CPU. --compiler is cuda, XLA's for GPUs, where it is installed (`make plan-gpu`; no GPU is needed),
else cpu, which knows nothing of traffic. --no-search compiles each program once: the largest batch that fits and other
placements of the weights are not looked for. The shapes of SmolLM2-135M and of meta-llama's Llama 3 are known by
name; other backbones need a local folder with a config.json.

Exit code 0 if the run fits with a tenth of the memory to spare, 3 if it does not, 2 for a mistake. Keys of plan.json:

    fits          whether every program leaves a tenth of each device's memory free
    devices       number of devices       accelerator   kind of device        mesh   devices along each axis
    parameters    of the whole model      peak, budget  bytes on one device: peak use, and allowed use
    phases        for each of `text`, `curriculum` and `ppo` in the run:
      batch_key, batch, largest_batch     the setting of the batch size, its value, and the largest that fits
      micro_batch_key, micro_batch, largest_micro_batch     the same of micro_batch_size where it is set, else null: the
                  largest that fits and divides the batch, which is kept; beyond the batch both grow
      placements  on several devices, for each program and each value of config.mesh.decoding_weights or gather: setting, value,
                  is_set, phase, program, peak (bytes on one device), seconds (estimate of one call; null without cuda)
      programs    for each of `rollout`, `update`, `text_update` and `curriculum_update`:
        memory    bytes on one device: weights (the parameters), optimizer, reference, memory_bank, gradients, caches,
                  batch, activations. peak: their sum
        flops     of matrix products in one call, over all devices
        seconds   roofline time of one call on each accelerator, without communication
        compiler  whose traffic it is: cuda; null where only the CPU's compiler was asked, and then so is traffic
        traffic   of one device and one call:
          bytes, bytes_in_loops               read and written in memory
          floor_bytes                         weights, caches and inputs, read once in each pass
          copied_bytes, copied_weights_bytes  read and written by copies, and of these of weights
          gathered_bytes, gathered_in_loops_bytes    made by all-gathers
          token_bytes, token_floor_bytes      of one decoded token
          collectives, copies                 by kind and by iterations of the loops around them; the ten largest copies
          seconds_alone                       arithmetic, memory and link on the accelerator, each by itself
          seconds                             estimate by part: kernels one after another, communication not hidden

longshot_jax/planning/plan.py explains how the figures are computed.
"""

import os
import sys

from longshot_jax.errors import UserError, run_command

DOES_NOT_FIT = 3  # Python ends with 1 after an error of its own


def main() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the GPU's compiler needs no GPU, and would take one
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it warns of what it does not know without one
    import jax

    from longshot_jax.cli import command_parser, parse_command, path_option, whole_number
    from longshot_jax.evaluation.results import write_results
    from longshot_jax.files import check_writable, json_with

    parser = command_parser(__doc__)
    parser.add_argument("--devices", type=whole_number(1))
    parser.add_argument("--accelerator")
    parser.add_argument("--compiler")
    parser.add_argument("--no-search", action="store_true")
    parser.add_argument("--output", type=path_option("--output"))
    run, _, options = parse_command(parser)
    if options.accelerator is None:
        raise UserError("no accelerator was given: add --accelerator h100-80g, or another one.")
    devices = options.devices or run.mesh.data * run.mesh.fsdp * run.mesh.tensor
    if options.output:
        check_writable(options.output, json_with("fits"))
    # Before JAX starts, because the number of devices is fixed then.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    from longshot_jax.planning.compilers import chosen_compiler
    from longshot_jax.planning.plan import as_json, make_plan
    from longshot_jax.planning.report import report

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    compiler = chosen_compiler(options.compiler, note)
    plan = make_plan(run, devices, options.accelerator, compiler=compiler, search=not options.no_search, note=note)
    print(report(plan))
    if options.output:
        write_results(options.output, as_json(plan))
    if not plan.fits:
        sys.exit(DOES_NOT_FIT)


if __name__ == "__main__":
    run_command(main)
