# What the tables decide: a verdict on every claim of the paper.
rule claims:
    input:
        tables=rules.tables.output.tables,
        ledger="workflow/config/claims.yaml",
        published="workflow/config/published.csv",
        memory=rules.memory_notebook.input.sweeps,
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
    conda:
        "../../envs/cpu.yaml"
    params:
        tables=f"{RESULTS}/tables",
        memory=f"{MEMORY}/tables",
    shell:
        "{CLI} claims --tables {params.tables} --memory {params.memory} --ledger {input.ledger} "
        "--published {input.published} --output {params.tables} > {log} 2>&1"


rule site:
    input:
        claims=rules.claims.output,
        tables=rules.tables.output,
        notebooks=[rules.notebook.output, rules.memory_notebook.output, rules.verdict.output],
    output:
        page=f"{RESULTS}/report/index.html",
        method=f"{RESULTS}/report/method.html",
        runs=directory(f"{RESULTS}/report/runs"),
        figures=directory(f"{RESULTS}/report/figures"),
    log:
        f"{RESULTS}/logs/site.log",
    conda:
        "../../envs/cpu.yaml"
    params:
        folder=f"{RESULTS}/report",
    shell:
        "{CLI} site {SELECT} --results {RESULTS} --output {params.folder} > {log} 2>&1"
