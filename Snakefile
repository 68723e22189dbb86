# The sweep of one preset, from data to report. Run as
#   snakemake --cores all                                    the default preset
#   snakemake --cores all --config preset=smoke              another preset
#   snakemake --cores all --config preset=cifar10_small set="data.path=../cifar10 sweep.seeds=[0]"
# `set` replaces single settings of the preset.


include: "workflow/rules/common.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/memory.smk"


if PRESET.language is not None:

    include: "workflow/rules/language.smk"


include: "workflow/rules/claims.smk"


rule all:
    default_target: True
    input:
        f"{RESULTS}/report/index.html",


onerror:
    for line in summary("".join(Path(file).read_text(encoding="utf-8") for file in log)):
        print(line)


onstart:
    # Held while this process lives; Snakemake's own lock would outlive a killed one.
    try:
        LOCKS.append(hold(Path(f"{RESULTS}/.lock")))
    except UserError as error:
        refuse(error)
    if LOCKS[-1] is None:
        refuse(
            UserError(
                f"another snakemake works on {RESULTS}; wait for it, or choose another folder "
                "with --config results=FOLDER"
            )
        )


onsuccess:
    for line in summary("".join(Path(file).read_text(encoding="utf-8") for file in log)):
        print(line)
    verdicts = Path(f"{RESULTS}/tables/claims.txt")
    if verdicts.is_file():
        print(f"\n{verdicts.read_text(encoding='utf-8')}")
    print(f"The report: {RESULTS}/report/index.html")
