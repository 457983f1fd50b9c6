using PyNODE: FIELDS, HOST, SAMPLE_FIELDS, SPARE, field_for, forget_fields!, sample_fields

fields_kept() = sort!([key[2] for key in keys(FIELDS)])  # their batches

function with_bytes(test, bytes)
    before = PyNODE.MAX_BYTES[]
    PyNODE.MAX_BYTES[] = bytes
    try
        forget_fields!()
        test()
    finally
        PyNODE.MAX_BYTES[] = before
        forget_fields!()
    end
end

@testset "bytes that a field holds" begin
    field = sample_field(Float64, 1000)
    vectors = 2 * 4 + 2  # u, v, du, dz of two numbers a sample, and what is computed of them
    least = PyNODE.bytes_held(field)
    @test 4 * 2 * 1000 * 8 <= least <= vectors * 2 * 1000 * 8 + 1000
    u0, θ = fill(0.1, 2000), fill(0.1, 4)
    values = zeros(2000, 2)
    forward!(values, field, u0, [0.0, 1.0], θ, Options(; solver = "Tsit5", rtol = 1e-3, atol = 1e-3, keep = :ends))
    once = PyNODE.bytes_held(field)
    @test once >= least + 8 * 2000 * 8  # seven stages, and the state before
    forward!(values, field, u0, [0.0, 1.0], θ, Options(; solver = "Tsit5", rtol = 1e-4, atol = 1e-3, keep = :ends))
    @test PyNODE.bytes_held(field) - once >= 8 * 2000 * 8
    @test PyNODE.bytes_held(field) == PyNODE.bytes_held(field)
end

@testset "fields that hold too much are forgotten" begin
    kernel = PyNODE.register("bytes", "float64", PyNODE.SAMPLE)
    make(batch) = field_for(kernel, batch, :joint, HOST)
    with_bytes(2^30) do
        foreach(make, 1:6)
        @test fields_kept() == 1:6
        foreach(make, 1:70)
        @test fields_kept() == 7:70  # 64 of them, whatever they hold
    end
    with_bytes(10^6) do
        fields = map(make, (10, 11, 12))
        large = [make(10_000 + i) for i in 1:3]  # of 0.6 MB and more each: two are kept
        @test fields_kept() == [10_002, 10_003]
        @test make(10_003) === large[3] && make(10_002) === large[2]
        make(9)
        @test fields_kept() == [9, 10_002]  # the one that was not asked for the longest is gone
        @test !any(f -> f.tape.open, [fields..., large[1], large[3]]) && large[2].tape.open
    end
    with_bytes(10^6) do
        kernels = [PyNODE.register("bytes $i", "float64", PyNODE.SAMPLE) for i in 1:3]
        @test sample_fields(kernels[1])[1] === sample_fields(kernels[1])[1]
        foreach(sample_fields, kernels)
        @test length(SAMPLE_FIELDS) == 3
        PyNODE.MAX_BYTES[] = 1
        sample_fields(PyNODE.register("bytes 4", "float64", PyNODE.SAMPLE))
        @test length(SAMPLE_FIELDS) == 1
    end
end

@testset "a solve outlives its field" begin
    kernel = PyNODE.register("bytes", "float64", PyNODE.SAMPLE)
    u0, θ, ts = fill(0.1, 2000), [0.1, 0.2, -0.3, 0.4], [0.0, 0.4, 1.0]
    g = [sin(i + j) for i in 1:2000, j in 1:3]
    options = Options(; solver = "Tsit5", rtol = 1e-6, atol = 1e-8, keep = :stages, memory = 2^30)
    function solved()
        field = field_for(kernel, 1000, :joint, HOST)
        _, kept = forward!(zeros(2000, 3), field, u0, ts, θ, options)
        return field, kept
    end
    with_bytes(1) do
        expected = discrete_pullback(solved()[2], g)
        forget_fields!()
        free = SPARE[]
        field, kept = solved()
        foreach(batch -> field_for(kernel, batch, :joint, HOST), 1:2)
        @test !field.tape.open
        found = discrete_pullback(kept, g)
        @test found.u0 == expected.u0 && found.θ == expected.θ && found.ts == expected.ts
        PyNODE.give_back!(kept)
        @test SPARE[] == free && all(isempty, field.tape.spare) && isempty(field.tape.chunks)
        again, _ = solved()
        @test again !== field && again.tape.open
    end
end

@testset "integrators that hold too much are forgotten" begin
    field = sample_field(Float64, 2^20)  # a state of 16 MB: one integrator has ten times that
    u0, values = fill(0.1, 2^21), zeros(2^21, 2)
    for i in 1:4
        options = Options(; solver = "Tsit5", rtol = 10.0^-i, atol = 1e-3, keep = :ends, max_steps = 1000)
        forward!(values, field, u0, [0.0, 0.01], fill(0.1, 4), options)
        @test length(field.integrators) == (1, 2, 1, 2)[i]  # two hold more than a third may be beside
    end
end
