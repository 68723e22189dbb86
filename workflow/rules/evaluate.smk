# Score samples, and real held-out images in their place: the floor of every score.
if PRESET.evaluation.extractor == "digits_cnn":
    EXTRACTOR_WEIGHTS = [f"{RESULTS}/data/digits_cnn.safetensors"]
else:
    EXTRACTOR_WEIGHTS = [p for p in [PRESET.evaluation.extractor_weights] if p is not None]


def weights_option(wildcards, input):
    """How the extractor's weights are named on the command line, if they are a file."""
    return f"--extractor-weights {shlex.quote(str(input.weights))}" if input.weights else ""


def samples_option(wildcards):
    """NAME=FILE for every sampling."""
    return " ".join(
        f"{name}={RESULTS}/runs/{wildcards.run}/samples-{name}.safetensors"
        for name in PRESET.sampling
    )


rule floor:
    input:
        data=f"{RESULTS}/data/dataset.json",
        weights=EXTRACTOR_WEIGHTS,
    output:
        f"{RESULTS}/data/floor.json",
    log:
        f"{RESULTS}/logs/floor.log",
    benchmark:
        f"{RESULTS}/benchmarks/floor.tsv"
    priority: 20  # it fills the cache of reference features that every evaluation reads
    conda:
        "../../envs/cpu.yaml"
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory,
    params:
        settings=section_hash("evaluation"),
        samples=max(s.samples for s in PRESET.sampling.values()),
        folder=f"{RESULTS}/data",
        cache=f"{RESULTS}/cache",
        weights=weights_option,
    shell:
        "{CLI} floor {SELECT} --data {params.folder} --cache {params.cache} {params.weights} "
        "--output {output} > {log} 2>&1"


rule evaluate:
    input:
        manifest=f"{RESULTS}/runs/{{run}}/manifest.json",
        samples=expand(
            "{results}/runs/{{run}}/samples-{sampling}.safetensors",
            results=RESULTS,
            sampling=PRESET.sampling,
        ),
        floor=f"{RESULTS}/data/floor.json",
        data=DATA_READY,
        weights=EXTRACTOR_WEIGHTS,
    output:
        f"{RESULTS}/runs/{{run}}/scores.json",
    log:
        f"{RESULTS}/logs/evaluate/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{run}}.tsv"
    priority: 5
    conda:
        "../../envs/cpu.yaml"
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory,
    params:
        settings=section_hash("evaluation"),
        folder=f"{RESULTS}/data",
        cache=f"{RESULTS}/cache",
        samples=samples_option,
        weights=weights_option,
    shell:
        "{CLI} evaluate {SELECT} --manifest {input.manifest} --samples {params.samples} "
        "--data {params.folder} --cache {params.cache} {params.weights} "
        "--output {output} > {log} 2>&1"
