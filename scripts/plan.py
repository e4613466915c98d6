"""Plan: memory and cost of a run on each device, from compiling its steps without its parameters.

    python scripts/plan.py --config configs/multi.py --devices 8 --accelerator h100-80g [--config.key=value ...]
        [--output plan.json]

--devices is the product of config.mesh by default. Accelerators: a100-40g, a100-80g, h100-80g, h200, b200. Everything
runs on this machine's CPU, on simulated devices. The shapes of meta-llama's Llama 3 are known by name; other backbones
need a local folder with a config.json.

Exit code 0 if the run fits with a tenth of the memory to spare, 1 if it does not, 2 for a mistake. Keys of plan.json:

    fits          whether every program leaves a tenth of each device's memory free
    devices       number of devices       accelerator   kind of device        mesh   devices along each axis
    parameters    of the whole model      peak, budget  bytes on one device: peak use, and allowed use
    phases        for each of `curriculum` and `ppo` in the run:
      batch_key, batch, largest_batch     the setting of the batch size, its value, and the largest that fits
      programs    for each of `rollout`, `update` and `curriculum_update`:
        memory    bytes on one device: weights (the parameters), optimizer, reference, memory_bank, gradients, caches,
                  batch, activations. peak: their sum
        flops     of matrix products in one call, over all devices
        seconds   roofline time of one call on each accelerator, without communication

longshot_jax/planning/plan.py explains how the figures are computed.
"""

import sys

from longshot_jax.errors import UserError, run_command

DOES_NOT_FIT = 1


def main() -> None:
    import jax

    from longshot_jax.cli import command_parser, parse_command, path_option, whole_number
    from longshot_jax.evaluation.results import write_results
    from longshot_jax.files import check_writable, json_with

    parser = command_parser(__doc__)
    parser.add_argument("--devices", type=whole_number(1))
    parser.add_argument("--accelerator")
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
    from longshot_jax.planning.plan import as_json, make_plan
    from longshot_jax.planning.report import report

    plan = make_plan(run, devices, options.accelerator, note=lambda text: print(text, file=sys.stderr, flush=True))
    print(report(plan))
    if options.output:
        write_results(options.output, as_json(plan))
    if not plan.fits:
        sys.exit(DOES_NOT_FIT)


if __name__ == "__main__":
    run_command(main)
