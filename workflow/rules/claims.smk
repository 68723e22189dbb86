# What the tables decide: a verdict on every claim of the paper.
MEMORY_TABLES = sorted(Path(RESULTS).glob("memory/*.csv"))


rule claims:
    input:
        tables=rules.tables.output.tables,
        ledger="workflow/config/claims.yaml",
        published="workflow/config/published.csv",
        memory=MEMORY_TABLES,
    output:
        report(
            f"{RESULTS}/claims/claims.csv",
            caption="../captions/claims.rst",
            category="Verdict",
        ),
        evidence=f"{RESULTS}/claims/evidence.csv",
        stability=f"{RESULTS}/claims/stability.csv",
        text=f"{RESULTS}/claims/claims.txt",
    log:
        f"{RESULTS}/logs/claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/claims.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        tables=f"{RESULTS}/tables",
        memory=f"{RESULTS}/memory",
        folder=f"{RESULTS}/claims",
    shell:
        "{CLI} claims --tables {params.tables} --memory {params.memory} --ledger {input.ledger} "
        "--published {input.published} --output {params.folder} > {log} 2>&1"


rule site:
    input:
        claims=rules.claims.output,
        tables=rules.tables.output,
        notebook=rules.notebook.output.page,
        figures=rules.notebook.output.figures,
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
