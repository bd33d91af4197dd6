
    func test%%{type}() throws {
        let (golden, model) = (try self.golden(), try %%{type}())
        for sample in golden.samples {
            let answers = try model.run(%%{arguments})
            let failures = golden.failures(
                of: %%{file}, in: sample,
                answers: [
%%{answers}
                ])
            XCTAssertEqual(failures, [], "sample \(sample.number)")
        }
    }
