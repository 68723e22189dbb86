# What the tables decide: a verdict on every claim of the paper.
if PRESET.language is None:
    TEXT_SCORES, TEXT_PAGE = [], []
else:
    TEXT_SCORES, TEXT_PAGE = rules.text_tables.output, rules.language_notebook.output


rule claims:
    input:
        tables=rules.tables.output.tables,
        ledger=local("workflow/config/claims.yaml"),
        published=local("workflow/config/published.csv"),
        memory=rules.memory_notebook.input.sweeps,
        language=TEXT_SCORES,
    output:
        report(
            f"{RESULTS}/tables/claims.csv",
            caption="../captions/claims.rst",
            category="Verdict",
        ),
        evidence=f"{RESULTS}/tables/evidence.csv",
        stability=f"{RESULTS}/tables/stability.csv",
        text=f"{RESULTS}/tables/claims.txt",
    log:
        f"{RESULTS}/logs/claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/claims.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        tables=f"{RESULTS}/tables",
        memory=f"{MEMORY}/tables",
        language=f"--language {LANGUAGE}/tables" if PRESET.language is not None else "",
    shell:
        "{CLI} claims --tables {params.tables} --memory {params.memory} {params.language} "
        "--ledger {input.ledger} "
        "--published {input.published} --output {params.tables} > {log} 2>&1"


rule verdict:
    input:
        claims=rules.claims.output,
        notebook=local("notebooks/verdict.ipynb"),
    output:
        notebook=f"{RESULTS}/report/verdict.ipynb",
        page=f"{RESULTS}/report/verdict.html",
        figures=report(
            directory(f"{RESULTS}/verdict/figures"),
            patterns=["{figure}.png"],
            caption="../captions/figure.rst",
            category="Figures",
        ),
    log:
        f"{RESULTS}/logs/verdict.log",
    benchmark:
        f"{RESULTS}/benchmarks/verdict.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        tables=f"{RESULTS}/tables",
    shell:
        """
        mkdir -p {output.figures}
        {{
            PYTHONPATH={LIBRARY} {PYTHON} -m papermill {input.notebook} {output.notebook} --no-progress-bar \
                -p preset {PRESET_NAME} -p tables {params.tables} -p figures {output.figures}
            {PYTHON} -m nbconvert --to html --no-input --HTMLExporter.mathjax_url= \
                --HTMLExporter.require_js_url= {output.notebook}
        }} > {log} 2>&1
        """


rule site:
    input:
        claims=rules.claims.output,
        tables=rules.tables.output,
        notebooks=[
            rules.notebook.output,
            rules.memory_notebook.output,
            rules.verdict.output,
            TEXT_PAGE,
        ],
    output:
        page=f"{RESULTS}/report/index.html",
        method=f"{RESULTS}/report/method.html",
        runs=directory(f"{RESULTS}/report/runs"),
        figures=directory(f"{RESULTS}/report/figures"),
    log:
        f"{RESULTS}/logs/site.log",
    benchmark:
        f"{RESULTS}/benchmarks/site.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        folder=f"{RESULTS}/report",
    shell:
        "{CLI} site {SELECT} --results {RESULTS} --output {params.folder} > {log} 2>&1"
