# Decode the data set once, encode it where networks see latents, and train the extractor where the preset wants the digits CNN.


rule data:
    output:
        description=f"{RESULTS}/data/dataset.json",
        arrays=expand(
            "{results}/data/{split}_{kind}.npy",
            results=RESULTS,
            split=["train", "test"],
            kind=["images", "labels"],
        ),
    log:
        f"{RESULTS}/logs/data.log",
    benchmark:
        f"{RESULTS}/benchmarks/data.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        settings=section_hash("data"),
        folder=f"{RESULTS}/data",
    shell:
        "{CLI} data {SELECT} --output {params.folder} > {log} 2>&1"


rule latents:
    input:
        rules.data.output.description,
    output:
        description=f"{RESULTS}/data/latents.json",
        arrays=expand(
            "{results}/data/{split}_{kind}.npy",
            results=RESULTS,
            split=["train", "test"],
            kind=["latents", "latent_labels"],
        ),
    log:
        f"{RESULTS}/logs/latents.log",
    benchmark:
        f"{RESULTS}/benchmarks/latents.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory,
    params:
        settings=section_hash("data"),
        folder=f"{RESULTS}/data",
    shell:
        "{CLI} latents {SELECT} --output {params.folder} > {log} 2>&1"


# What training and scoring read.
DATA_READY = [f"{RESULTS}/data/dataset.json"]
if PRESET.data.name in LATENT_SETS:
    DATA_READY.append(f"{RESULTS}/data/latents.json")


rule extractor:
    input:
        rules.data.output.description,
    output:
        weights=f"{RESULTS}/data/digits_cnn.safetensors",
        report=f"{RESULTS}/data/digits_cnn.json",
    log:
        f"{RESULTS}/logs/extractor.log",
    benchmark:
        f"{RESULTS}/benchmarks/extractor.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: THREADS
    resources:
        mem_mb=memory,
    params:
        folder=f"{RESULTS}/data",
    shell:
        "{CLI} extractor {SELECT} --data {params.folder} --output {output.weights} > {log} 2>&1"
