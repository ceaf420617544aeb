# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# Each recipe is one call of cdm, which ci/just starts inside the toolbox. Recipes
# run in the folder that you are in, so that paths you give mean what you think.

set positional-arguments

cdm := quote(justfile_directory() / "ci/just") + " --cdm"

# List the recipes
[no-cd, no-exit-message]
_default:
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} --list --unsorted

# Boot a guest with the device and open a shell in it
[no-cd, no-exit-message]
run-vm *ARGS:
    @{{ cdm }} run-vm "$@"

# Open one more shell in a guest that runs, or run a command in it
[no-cd, no-exit-message]
shell *ARGS:
    @{{ cdm }} shell "$@"

# Copy a file or folder into a guest that runs, or out of it
[no-cd, no-exit-message]
cp *ARGS:
    @{{ cdm }} cp "$@"

# Print what the console, the devices and QEMU of a run have said
[no-cd, no-exit-message]
logs *ARGS:
    @{{ cdm }} logs "$@"

# Rebuild the driver on each change, reload it in the running guest, run a scenario
[no-cd, no-exit-message]
dev *ARGS:
    @{{ cdm }} dev "$@"

# Have rust-analyzer understand the driver and everything else
[no-cd, no-exit-message]
ide *ARGS:
    @{{ cdm }} ide "$@"

# Measure the time to a command in a guest, against a bare QEMU boot
[no-cd, no-exit-message]
boot-time *ARGS:
    @{{ cdm }} boot-time "$@"

# Measure what device and driver do, against what a user would pick instead
[no-cd, no-exit-message]
bench *ARGS:
    @{{ cdm }} bench "$@"

# Run all checks and tests; the last line counts them
[no-cd, no-exit-message]
test *ARGS:
    @{{ cdm }} test "$@"

# Feed the device what a hostile guest could say, for as long as asked
[no-cd, no-exit-message]
fuzz *ARGS:
    @{{ cdm }} fuzz "$@"

# Run named stress scenarios, or the kernel's own suite for device memory
[no-cd, no-exit-message]
stress *ARGS:
    @{{ cdm }} stress "$@"

# Draw stress scenarios at random for hours, until something is wrong
[no-cd, no-exit-message]
soak *ARGS:
    @{{ cdm }} soak "$@"

# Try what CPUs and device see of each other's accesses, millions of times
[no-cd, no-exit-message]
litmus *ARGS:
    @{{ cdm }} litmus "$@"

# Plant mistakes in kernel, driver and device, and see that the tests find them
[no-cd, no-exit-message]
mutants *ARGS:
    @{{ cdm }} mutants "$@"

# Build and boot the kernel after each patch of the series
[no-cd, no-exit-message]
series-check *ARGS:
    @{{ cdm }} series-check "$@"

# Measure the device's process on the host, against what the host does by itself
[no-cd, no-exit-message]
bench-backend *ARGS:
    @{{ cdm }} bench-backend "$@"

# Try what each type of device memory can do, and print a table of it
[no-cd, no-exit-message]
behaviour-table *ARGS:
    @{{ cdm }} behaviour-table "$@"

# Make a book of the documents
[no-cd, no-exit-message]
book *ARGS:
    @{{ cdm }} book "$@"

# Compare pages and header that are written from code with it, or write them anew
[no-cd, no-exit-message]
reference *ARGS:
    @{{ cdm }} reference "$@"

# Print the results of a run as Markdown, as GitHub shows them
[no-cd, no-exit-message]
results *ARGS:
    @{{ cdm }} results "$@"

# Put the last results of tests, stress and benchmarks on one page, with plots
[no-cd, no-exit-message]
report *ARGS:
    @{{ cdm }} report "$@"

# Make packages for Debian, of the device's process and of the driver's source
[no-cd, no-exit-message]
package *ARGS:
    @{{ cdm }} package "$@"

# Look at licences, origin and known faults of the crates that are built in
[no-cd, no-exit-message]
deny *ARGS:
    @{{ cdm }} deny "$@"

# Make an image for containers that runs all this without building anything
[no-cd, no-exit-message]
image *ARGS:
    @{{ cdm }} image "$@"

# Look at a device that runs, or have it fail on request
[no-cd, no-exit-message]
device *ARGS:
    @{{ cdm }} device "$@"

# Print what a shell needs to complete recipes and their options
[no-cd, no-exit-message]
completions *ARGS:
    @{{ cdm }} completions "$@"

# Tell what this machine has and lacks, and how to mend it
[no-cd, no-exit-message]
doctor *ARGS:
    @{{ cdm }} doctor "$@"

# Build everything that a guest needs, and boot nothing
[no-cd, no-exit-message]
build *ARGS:
    @{{ cdm }} build "$@"

# Build a guest kernel and print where it is
[no-cd, no-exit-message]
kernel *ARGS:
    @{{ cdm }} kernel "$@"

# Build a module of your own for a guest kernel and print where it is
[no-cd, no-exit-message]
module *ARGS:
    @{{ cdm }} module "$@"

# Remove what was built from the cache
[no-cd, no-exit-message]
clean *ARGS:
    @{{ cdm }} clean "$@"
