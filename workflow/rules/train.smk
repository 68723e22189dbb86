# One job per block of an independent run; one job for an end-to-end or interleaved run.


rule train:
    input:
        DATA_READY,
    output:
        weights=f"{RESULTS}/runs/{{run}}/{{part}}.safetensors",
        curve=f"{RESULTS}/runs/{{run}}/{{part}}-curve.csv",
        metrics=f"{RESULTS}/runs/{{run}}/{{part}}.json",
    log:
        f"{RESULTS}/logs/train/{{run}}-{{part}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{{run}}-{{part}}.tsv"
    # The longest jobs first, so that the last minutes of a sweep use every core.
    priority: 10
    conda:
        "../../envs/cpu.yaml"
    threads: THREADS * PROCESSES
    resources:
        gpu=GPU * PROCESSES,
        mem_mb=memory,
    params:
        hash=lambda wildcards: RUNS[wildcards.run].hash,
        data=f"{RESULTS}/data",
        # Not an output: Snakemake removes outputs of killed jobs, and this must outlive them.
        state=lambda wildcards: (
            f"{RESULTS}/state/{wildcards.run}/{wildcards.part}-{RUNS[wildcards.run].hash}"
        ),
    shell:
        "{TRAIN_CLI} train {SELECT} --run {wildcards.run} --part {wildcards.part} "
        "--config-hash {params.hash} --data {params.data} --state {params.state} "
        "--output {output.weights} > {log} 2>&1"


def parts_of(wildcards):
    """Weights and descriptions of every part of a run."""
    return [
        f"{RESULTS}/runs/{wildcards.run}/{part}{suffix}"
        for part in RUNS[wildcards.run].parts
        for suffix in (".safetensors", ".json")
    ]


rule assemble:
    input:
        parts_of,
    output:
        f"{RESULTS}/runs/{{run}}/manifest.json",
    log:
        f"{RESULTS}/logs/assemble/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/assemble/{{run}}.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        hash=lambda wildcards: RUNS[wildcards.run].hash,
        folder=f"{RESULTS}/runs/{{run}}",
    shell:
        "{CLI} assemble {SELECT} --run {wildcards.run} --config-hash {params.hash} "
        "--parts {params.folder} --output {output} > {log} 2>&1"
