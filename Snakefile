# The sweep of one preset, from data to report. Run as
#   snakemake --cores all                                    the default preset
#   snakemake --cores all --config preset=smoke              another preset
#   snakemake --cores all --config preset=cifar10_small data.path=../cifar10
# Every config key other than `preset` replaces one setting of the preset.


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        f"{RESULTS}/report/image_quality.html",
