#!/bin/sh
# Stands before Slurm's command of this name on the kubelet's PATH, in DIR/bin. DIR/faults/<name> holds the fault that is wanted;
# for sbatch the call that takes the file away has it, for the others it is there as long as the file.
name=${0##*/} real=/usr/bin/${0##*/} dir=${0%/bin/*}/faults  # sbatch gets no variable of ours
order=$dir/$name
[ -e "$order" ] || exec "$real" "$@"
if [ "$name" = sbatch ]; then
    if [ "$1" != --parsable ] || ! mv "$order" "$order.$$" 2>/dev/null; then exec "$real" "$@"; fi
    order=$order.$$
fi
read -r fault <"$order" || exec "$real" "$@"
echo "$name $fault" >>"$dir/log"
lost() { echo "$name: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1; }
case $fault in
lost-reply) "$real" "$@" >/dev/null; lost ;;                                # the job is there, the answer is not
late) (sleep 3; exec "$real" "$@") >/dev/null 2>&1 </dev/null & lost ;;     # and here it will be there only in three seconds
hang) "$real" "$@" >/dev/null; exec sleep 300 ;;
killed) "$real" "$@" >/dev/null; kill -9 $$ ;;
garbled) "$real" "$@" >/dev/null; echo 'Submitted batch jub' ;;
unreachable) echo "$name: error: Batch job submission failed: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
refused) echo "$name: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)" >&2; exit 1 ;;
garbage) printf '\033[31m%% \036 garbage \037\037 \036\n' ;;
truncated) "$real" "$@" | head -c -40 ;;
fail) echo "$name: error: slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
esac
