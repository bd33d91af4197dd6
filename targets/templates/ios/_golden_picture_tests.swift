
    private func pictured() throws -> [%%{prefix}Golden.Sample] {
        let samples = try golden().samples.filter { !$0.pictures.isEmpty }
        try XCTSkipIf(samples.isEmpty, "these golden vectors start from tensors, not from pictures")
        return samples
    }

    func testGoldenPicturesBecomeTheGoldenTensors() throws {
        for sample in try pictured() {
            for (name, picture) in sample.pictures {
                let got = %%{prefix}Preprocessing.tensor(
                    rgba: picture.rgba, width: picture.width, height: picture.height)
                let wanted = try sample.input(name).values.map { %%{element}($0) }
                let finding = %%{prefix}Mistakes.name(expected: wanted, got: got)
                XCTAssertTrue(finding.isAgreement, "sample \(sample.number): \(finding)")
            }
        }
    }

    #if canImport(ImageIO)
    func testPicturesThatThePlatformDecodesBecomeTheGoldenTensors() throws {
        for sample in try pictured() {
            for (name, picture) in sample.pictures {
                let source = try XCTUnwrap(CGImageSourceCreateWithURL(picture.file as CFURL, nil))
                let image = try XCTUnwrap(CGImageSourceCreateImageAtIndex(source, 0, nil))
                let got = try %%{prefix}Preprocessing.tensor(image)
                let wanted = try sample.input(name).values.map { %%{element}($0) }
                let finding = %%{prefix}Mistakes.name(expected: wanted, got: got)
                XCTAssertTrue(finding.isAgreement, "sample \(sample.number): \(finding)")
            }
        }
    }
    #endif
