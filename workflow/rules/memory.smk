# Memory of training and sampling: planned and measured tables, then the notebook and its page.
# Nothing here needs data or trained weights: `snakemake memory` runs it alone.
MEMORY = f"{RESULTS}/memory"
# Networks whose crossing with checkpointing is looked up: name of the file → how to name them.
CROSSINGS = {
    re.sub(r"\W+", "_", name).lower(): (
        SELECT if name == "preset" else f"--model {shlex.quote(name)}"
    )
    for name in PRESET.memory.crossings
}


wildcard_constraints:
    sweep="|".join(map(re.escape, PRESET.memory.sweeps)),
    network="|".join(map(re.escape, CROSSINGS)),


rule memory_sweep:
    output:
        f"{MEMORY}/tables/{{sweep}}.csv",
    log:
        f"{RESULTS}/logs/memory/{{sweep}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/memory/{{sweep}}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory,
    params:
        sweep=lambda wildcards: digest(
            PRESET.memory.sweeps[wildcards.sweep].model_dump(mode="json")
        ),
        settings=section_hash("data", "network", "training", "compute"),
    shell:
        "{CLI} memory sweep {SELECT} --sweep {wildcards.sweep} --csv {output} > {log} 2>&1"


rule memory_crossing:
    output:
        f"{MEMORY}/crossing-{{network}}.csv",
    log:
        f"{RESULTS}/logs/memory/crossing-{{network}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/memory/crossing-{{network}}.tsv"
    priority: 5  # the longest first
    conda:
        "../../envs/cpu.yaml"
    params:
        settings=section_hash("data", "network", "training"),
        network=lambda wildcards: CROSSINGS[wildcards.network],
    shell:
        "{CLI} memory crossing {params.network} --csv {output} > {log} 2>&1"


rule memory_inference:
    output:
        f"{MEMORY}/inference.csv",
    log:
        f"{RESULTS}/logs/memory/inference.log",
    benchmark:
        f"{RESULTS}/benchmarks/memory/inference.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory,
    params:
        settings=section_hash("data", "network", "compute"),
        steps=PRESET.memory.sampling_steps,
        samples=PRESET.memory.sampling_batch_size,
        device=PRESET.compute.device,
    shell:
        "{CLI} memory inference {SELECT} --steps {params.steps} --samples {params.samples} "
        "--device {params.device} --threads {threads} --csv {output} > {log} 2>&1"


rule memory_text:
    output:
        f"{MEMORY}/text.csv",
    log:
        f"{RESULTS}/logs/memory/text.log",
    benchmark:
        f"{RESULTS}/benchmarks/memory/text.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        settings=digest(PRESET.memory.model_dump(mode="json", include={"text"})),
    shell:
        "{CLI} memory text {SELECT} --csv {output} > {log} 2>&1"


rule memory_notebook:
    input:
        sweeps=expand("{memory}/tables/{sweep}.csv", memory=MEMORY, sweep=PRESET.memory.sweeps),
        crossings=expand("{memory}/crossing-{network}.csv", memory=MEMORY, network=CROSSINGS),
        inference=f"{MEMORY}/inference.csv",
        text=[f"{MEMORY}/text.csv"] if PRESET.memory.text else [],
        notebook=local("notebooks/memory.ipynb"),
    output:
        notebook=f"{RESULTS}/report/memory.ipynb",
        page=f"{RESULTS}/report/memory.html",
        figures=report(
            directory(f"{MEMORY}/figures"),
            patterns=["{figure}.png"],
            caption="../captions/figure.rst",
            category="Figures",
        ),
        summary=directory(f"{MEMORY}/summary"),
    log:
        f"{RESULTS}/logs/memory/notebook.log",
    benchmark:
        f"{RESULTS}/benchmarks/memory/notebook.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        tables=MEMORY,
    shell:
        """
        mkdir -p {output.figures} {output.summary}
        {{
            PYTHONPATH={LIBRARY} {PYTHON} -m papermill {input.notebook} {output.notebook} --no-progress-bar \
                -p preset {PRESET_NAME} -p tables {params.tables} \
                -p figures {output.figures} -p summary_tables {output.summary}
            {PYTHON} -m nbconvert --to html --no-input --HTMLExporter.mathjax_url= \
                --HTMLExporter.require_js_url= {output.notebook}
        }} > {log} 2>&1
        """


rule memory:
    input:
        rules.memory_notebook.output,
