# The language half of a preset, from text to page: `snakemake language` runs it alone.
# One training job per block of an independent run, as for images; the judge of generated text is
# one more run, trained on documents that no compared model sees.
LANGUAGE = f"{RESULTS}/language"
TEXT = PRESET.language
JUDGE = TEXT.judge()
TEXT_RUNS = {run.name: run for run in [*TEXT.runs(), *([JUDGE] if JUDGE else [])]}
COMPARED = [run.name for run in TEXT.runs()]
JUDGE_MANIFEST = [f"{LANGUAGE}/runs/{JUDGE.name}/manifest.json"] if JUDGE else []
TEXT_THREADS = TEXT.compute.threads
TEXT_GPU = 1 if TEXT.compute.device == "cuda" else 0
TEXT_TABLES = [
    "scores",
    "bound_curve",
    "floors",
    "generation",
    "samples",
    "training",
    "curves",
    "setting",
]


wildcard_constraints:
    text_run="|".join(map(re.escape, TEXT_RUNS)),
    text_part=r"block\d+|all",


def text_hash(*sections):
    """Like section_hash, of the language half."""
    return digest(TEXT.model_dump(mode="json", include=set(sections)))


def text_parts_of(wildcards):
    """Weights and descriptions of every part of a language run."""
    return [
        f"{LANGUAGE}/runs/{wildcards.text_run}/{part}{suffix}"
        for part in TEXT_RUNS[wildcards.text_run].parts
        for suffix in (".safetensors", ".json")
    ]


def judge_option(wildcards, input):
    """How the DAG's own judge is named on the command line, if there is one."""
    return f"--judge {shlex.quote(str(input.judge))}" if input.judge else ""


rule text_data:
    output:
        description=f"{LANGUAGE}/data/text.json",
        tokenizer=f"{LANGUAGE}/data/tokenizer.json",
        splits=expand(
            "{language}/data/{split}.bin",
            language=LANGUAGE,
            split=["train", "judge", "validation", "test"],
        ),
    log:
        f"{RESULTS}/logs/language/data.log",
    benchmark:
        f"{RESULTS}/benchmarks/language/data.tsv"
    priority: 30
    conda:
        "../../envs/cpu.yaml"
    params:
        settings=text_hash("data", "tokenizer"),
        context=TEXT.network.context_length,
        folder=f"{LANGUAGE}/data",
    shell:
        "{CLI} language data {SELECT} --output {params.folder} > {log} 2>&1"


rule text_train:
    input:
        f"{LANGUAGE}/data/text.json",
    output:
        weights=f"{LANGUAGE}/runs/{{text_run}}/{{text_part}}.safetensors",
        curve=f"{LANGUAGE}/runs/{{text_run}}/{{text_part}}-curve.csv",
        metrics=f"{LANGUAGE}/runs/{{text_run}}/{{text_part}}.json",
    log:
        f"{RESULTS}/logs/language/train/{{text_run}}-{{text_part}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/language/train/{{text_run}}-{{text_part}}.tsv"
    # Every score waits for the judge.
    priority: lambda wildcards: 25 if JUDGE and wildcards.text_run == JUDGE.name else 10
    conda:
        "../../envs/cpu.yaml"
    threads: TEXT_THREADS
    resources:
        gpu=TEXT_GPU,
        mem_mb=memory,
    params:
        hash=lambda wildcards: TEXT_RUNS[wildcards.text_run].hash,
        data=f"{LANGUAGE}/data",
        # Not an output: Snakemake removes outputs of killed jobs, and this must outlive them.
        state=lambda wildcards: (
            f"{LANGUAGE}/state/{wildcards.text_run}/"
            f"{wildcards.text_part}-{TEXT_RUNS[wildcards.text_run].hash}"
        ),
    shell:
        "{CLI} language train {SELECT} --run {wildcards.text_run} --part {wildcards.text_part} "
        "--config-hash {params.hash} --data {params.data} --state {params.state} "
        "--output {output.weights} > {log} 2>&1"


rule text_assemble:
    input:
        text_parts_of,
    output:
        f"{LANGUAGE}/runs/{{text_run}}/manifest.json",
    log:
        f"{RESULTS}/logs/language/assemble/{{text_run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/language/assemble/{{text_run}}.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        hash=lambda wildcards: TEXT_RUNS[wildcards.text_run].hash,
        folder=f"{LANGUAGE}/runs/{{text_run}}",
    shell:
        "{CLI} language assemble {SELECT} --run {wildcards.text_run} "
        "--config-hash {params.hash} --parts {params.folder} --output {output} > {log} 2>&1"


rule text_generate:
    input:
        manifest=f"{LANGUAGE}/runs/{{text_run}}/manifest.json",
        data=f"{LANGUAGE}/data/text.json",
    output:
        expand(
            "{language}/runs/{{text_run}}/samples-{name}{suffix}",
            language=LANGUAGE,
            name=TEXT.generation,
            suffix=[".safetensors", ".json"],
        ),
    log:
        f"{RESULTS}/logs/language/generate/{{text_run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/language/generate/{{text_run}}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: TEXT_THREADS
    resources:
        gpu=TEXT_GPU,
        mem_mb=memory,
    params:
        settings=text_hash("generation"),
        names=" ".join(TEXT.generation),
        data=f"{LANGUAGE}/data",
        folder=f"{LANGUAGE}/runs/{{text_run}}",
    shell:
        "{CLI} language generate {SELECT} --generation {params.names} "
        "--manifest {input.manifest} --data {params.data} --output {params.folder} > {log} 2>&1"


rule text_floor:
    input:
        data=f"{LANGUAGE}/data/text.json",
        judge=JUDGE_MANIFEST,
    output:
        f"{LANGUAGE}/floor.json",
    log:
        f"{RESULTS}/logs/language/floor.log",
    benchmark:
        f"{RESULTS}/benchmarks/language/floor.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: TEXT_THREADS
    resources:
        gpu=TEXT_GPU,
        mem_mb=memory,
    params:
        settings=text_hash("generation", "evaluation"),
        data=f"{LANGUAGE}/data",
        judge=judge_option,
    shell:
        "{CLI} language floor {SELECT} --data {params.data} {params.judge} "
        "--output {output} > {log} 2>&1"


rule text_score:
    input:
        manifest=f"{LANGUAGE}/runs/{{text_run}}/manifest.json",
        samples=expand(
            "{language}/runs/{{text_run}}/samples-{name}.safetensors",
            language=LANGUAGE,
            name=TEXT.generation,
        ),
        data=f"{LANGUAGE}/data/text.json",
        judge=JUDGE_MANIFEST,
    output:
        f"{LANGUAGE}/runs/{{text_run}}/scores.json",
    log:
        f"{RESULTS}/logs/language/score/{{text_run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/language/score/{{text_run}}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: TEXT_THREADS
    resources:
        gpu=TEXT_GPU,
        mem_mb=memory,
    params:
        settings=text_hash("evaluation"),
        data=f"{LANGUAGE}/data",
        judge=judge_option,
        samples=lambda wildcards: " ".join(
            f"{name}={LANGUAGE}/runs/{wildcards.text_run}/samples-{name}.safetensors"
            for name in TEXT.generation
        ),
    shell:
        "{CLI} language score {SELECT} --manifest {input.manifest} --samples {params.samples} "
        "--data {params.data} {params.judge} --output {output} > {log} 2>&1"


rule text_tables:
    input:
        scores=expand("{language}/runs/{run}/scores.json", language=LANGUAGE, run=COMPARED),
        floor=f"{LANGUAGE}/floor.json",
    output:
        expand("{language}/tables/{table}.csv", language=LANGUAGE, table=TEXT_TABLES),
    log:
        f"{RESULTS}/logs/language/tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/language/tables.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        runs=digest(sorted(COMPARED)),
        folder=f"{LANGUAGE}/tables",
    shell:
        "{CLI} language tables {SELECT} --results {LANGUAGE} --output {params.folder} "
        "> {log} 2>&1"


rule language_notebook:
    input:
        tables=rules.text_tables.output,
        notebook=local("notebooks/language_quality.ipynb"),
        published=local("workflow/config/published.csv"),
    output:
        notebook=f"{RESULTS}/report/language_quality.ipynb",
        page=f"{RESULTS}/report/language_quality.html",
        figures=report(
            directory(f"{LANGUAGE}/figures"),
            patterns=["{figure}.png"],
            caption="../captions/figure.rst",
            category="Figures",
        ),
        summary=directory(f"{LANGUAGE}/summary"),
    log:
        f"{RESULTS}/logs/language/notebook.log",
    benchmark:
        f"{RESULTS}/benchmarks/language/notebook.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        tables=f"{LANGUAGE}/tables",
    shell:
        """
        mkdir -p {output.figures} {output.summary}
        {{
            PYTHONPATH={LIBRARY} {PYTHON} -m papermill {input.notebook} {output.notebook} --no-progress-bar \
                -p preset {PRESET_NAME} -p tables {params.tables} \
                -p published {input.published} -p figures {output.figures} \
                -p summary_tables {output.summary}
            {PYTHON} -m nbconvert --to html --no-input --HTMLExporter.mathjax_url= \
                --HTMLExporter.require_js_url= {output.notebook}
        }} > {log} 2>&1
        """


rule language:
    input:
        rules.language_notebook.output,
