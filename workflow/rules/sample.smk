# Draw every run's samples under every sampling of the preset.


rule sample:
    input:
        f"{RESULTS}/runs/{{run}}/manifest.json",
    output:
        images=f"{RESULTS}/runs/{{run}}/samples-{{sampling}}.safetensors",
        metrics=f"{RESULTS}/runs/{{run}}/samples-{{sampling}}.json",
    log:
        f"{RESULTS}/logs/sample/{{run}}-{{sampling}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/sample/{{run}}-{{sampling}}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory,
    params:
        settings=lambda wildcards: digest(
            PRESET.sampling[wildcards.sampling].model_dump(mode="json")
        ),
    shell:
        "{CLI} sample {SELECT} --manifest {input} --sampling {wildcards.sampling} "
        "--output {output.images} > {log} 2>&1"
