# Tidy tables out of every run's JSON, then the notebook, then its page.
TABLES = [
    "scores",
    "floors",
    "validation_loss",
    "training",
    "curves",
    "sampling",
    "setting",
]


rule tables:
    input:
        scores=expand("{results}/runs/{run}/scores.json", results=RESULTS, run=RUNS),
        floor=f"{RESULTS}/data/floor.json",
    output:
        tables=expand("{results}/tables/{table}.csv", results=RESULTS, table=TABLES),
        samples=directory(f"{RESULTS}/tables/samples"),
    log:
        f"{RESULTS}/logs/tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/tables.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        runs=digest(sorted(RUNS)),
        folder=f"{RESULTS}/tables",
    shell:
        "{CLI} tables {SELECT} --results {RESULTS} --output {params.folder} > {log} 2>&1"


rule notebook:
    input:
        tables=rules.tables.output,
        notebook=local("notebooks/image_quality.ipynb"),
        published=local("workflow/config/published.csv"),
    output:
        notebook=f"{RESULTS}/report/image_quality.ipynb",
        page=f"{RESULTS}/report/image_quality.html",
        figures=report(
            directory(f"{RESULTS}/figures"),
            patterns=["{figure}.png"],
            caption="../captions/figure.rst",
            category="Figures",
        ),
        summary=directory(f"{RESULTS}/summary"),
    log:
        f"{RESULTS}/logs/notebook.log",
    benchmark:
        f"{RESULTS}/benchmarks/notebook.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        tables=f"{RESULTS}/tables",
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
