# Writes the Manifest of this folder from an environment that was run:
#
#     julia --startup-file=no julia/lock/write.jl PATH/TO/ENVIRONMENT
#
# It keeps the versions there, and what the Project of this folder needs of them. Every package has to be a registered
# version, but for PyNODE, whose path is that of the sources beside this folder.
using Pkg, TOML

const REGISTERED = ("git-tree-sha1", "version")

function lock(environment)
    here = @__DIR__
    versions = TOML.parsefile(joinpath(environment, "Manifest.toml"))
    mktempdir() do folder
        cp(joinpath(here, "Project.toml"), joinpath(folder, "Project.toml"))
        versions["deps"]["PyNODE"][1]["path"] = dirname(here)
        open(io -> TOML.print(io, versions), joinpath(folder, "Manifest.toml"), "w")
        Pkg.activate(folder)
        Pkg.offline()
        Pkg.resolve()
        found = TOML.parsefile(joinpath(folder, "Manifest.toml"))
        for (name, (entry,)) in found["deps"]
            before = versions["deps"][name][1]
            all(get(entry, key, nothing) == get(before, key, nothing) for key in REGISTERED) ||
                error("$name is $(entry["version"]), and $(before["version"]) was run")
            haskey(entry, "path") && name != "PyNODE" && error("$name is a folder: $(entry["path"])")
        end
        text = read(joinpath(folder, "Manifest.toml"), String)
        write(joinpath(here, "Manifest.toml"), replace(text, r"^path = .*$"m => "path = \"..\""))
    end
end

lock(only(ARGS))
